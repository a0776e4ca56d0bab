"""Tables of made images, and what ingest says of them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_images

from clipft_tasks.contracts.stages import IngestResult
from clipft_tasks.data import manifest
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest

PER_CLASS = 12


def spec_of(source: Path | str, **more: object) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "source": str(source), **more})


def taken(result: IngestResult) -> pd.DataFrame:
    return manifest.read(Path(result.staging) / "manifest.parquet")


def rejected(result: IngestResult) -> dict[str, dict[str, str]]:
    lines = (Path(result.staging) / "rejected.jsonl").read_text("utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A table of twelve red and twelve blue squares."""
    return write_images(tmp_path / "source", PER_CLASS)


@pytest.fixture
def good(images: Path) -> list[dict]:
    return pd.read_csv(images, dtype=str, keep_default_na=False).to_dict("records")


# Kinds of source ------------------------------------------------------------------------------------------------------


def same_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """What a row is, without where it came from; which split a row gets also depends on the order of the source."""
    return frame[["key", "caption", "label", "width", "height", "mode", "format", "sha256", "phash"]]


@pytest.fixture
def as_csv(home, images) -> pd.DataFrame:
    return taken(ingest.run(spec_of(images)))
