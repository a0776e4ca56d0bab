"""The server as its clients meet it: a real uvicorn process, a real registry, real packages.

`trained`, `Server` and the helpers serve test_deploy.py too.
"""

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import small, write_pictures, write_tiny

from clipft_tasks import tracking
from clipft_tasks.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKEN = "a token that only this test knows"


# A home with two registered versions, made once a session -----------------------------------------------------------


def use(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Point this process at an installation."""
    for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
        patch.delenv(name)
    patch.setenv("CLIPFT_HOME", str(home))
    settings.cache_clear()


def spec(base: Path, seed: int) -> RunSpec:
    more = {"resolution.evaluate": [32], "train.seed": seed, "gate.min_gain": -1, "gate.max_drop": 1}
    return RunSpec.from_flat(small(base / "source" / "pictures.csv", base / "tiny", **more))


@cache
def trained(base: Path) -> Path:
    """A home whose registry holds versions 1 (champion) and 2 (challenger) of clipft-general, from the real stages."""
    write_pictures(base / "source")
    write_tiny(base / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        use(base / "home", patch)
        for seed, last in ((0, "promote"), (1, "register")):
            done: dict[str, Any] = {}
            for name in chain.CHAIN:
                done[name] = chain.run_stage(name, spec(base, seed), done.__getitem__)
                if name == last:
                    break
        assert done["register"]["version"] == "2"
        for version in ("1", "2"):
            package(version)
    settings.cache_clear()
    return base / "home"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "two-versions"


def copied(home: Path, to: Path) -> Path:
    """A registry and package cache of its own; artifacts stay where they were logged."""
    (to / "mlflow").mkdir(parents=True)
    shutil.copy(home / "mlflow" / "mlflow.db", to / "mlflow")
    shutil.copytree(home / "cache" / "models", to / "cache" / "models")
    return to


def package(version: str) -> Path:
    """The cached package of a version in this process's home."""
    return tracking.fetch_package(tracking.version_of(f"models:/clipft-general/{version}"))
