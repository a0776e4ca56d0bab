"""A data set for the tests that train."""

from dataclasses import replace

import pytest

from clipft_tasks.data import versioning
from clipft_tasks.stages import ingest, version


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def dataset(shared_home, small_spec, kept):
    """One data set for a whole file: DVC takes seconds each time it is asked."""
    if not kept:
        made = version.run(small_spec, ingest.run(small_spec).staging)
        kept["dataset"] = versioning.fetch(versioning.find(made.dataset, "general"))
    return replace(kept["dataset"])
