"""Fixtures that every kind of test shares: a home of its own, made images, a small real CLIP."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

# No test reaches for a hub: a missing network must fail at once, not after minutes of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import hypothesis
import numpy as np
import pytest
from PIL import Image

from clipft_tasks.core.settings import settings

# In CI the examples are the same each time: a failure there is of the change, and is repeated by running the test again.
hypothesis.settings.register_profile("here", max_examples=60, deadline=None, database=None)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("here"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-losses", metavar="REASON", help="write the losses of tests/parity/test_golden_losses.py anew; why they change"
    )


@pytest.fixture(scope="session")
def mlflow_tables() -> Iterator[None]:
    """MLflow makes its tables by every migration it ever had, a second each time: here once, and copied into other new databases."""
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store as registry

    make = utils._initialize_tables
    tables = "SELECT count(*) FROM sqlite_master"

    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as made, pytest.MonkeyPatch.context() as patch:

        def copy(engine) -> None:
            with engine.connect() as connection:
                own = connection.connection.dbapi_connection
                new = engine.dialect.name == "sqlite" and own.execute(tables).fetchone() == (0,)
                if new and made.execute(tables).fetchone() != (0,):
                    return made.backup(own)
            make(engine)
            if new:
                with engine.connect() as connection:
                    connection.connection.dbapi_connection.backup(made)

        for module in (utils, registry):
            patch.setattr(module, "_initialize_tables", copy)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_tables: None) -> Path:
    """An installation of its own: every path of the settings lies under it."""
    for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLIPFT_SERVING_BACKEND", "torch")  # others are exported in tens of seconds
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def shared_home(home: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One installation for a whole file, without what earlier tests staged: new databases and repositories take seconds each."""
    monkeypatch.setenv("CLIPFT_HOME", str(installed))
    settings.cache_clear()
    shutil.rmtree(installed / "staging", ignore_errors=True)
    return installed


@pytest.fixture
def own_domains(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls with paths put them on CLIPFT_DOMAINS_PATH; the menu is read anew, and again afterwards."""

    from clipft_tasks import domains

    def put(*paths: Path) -> None:
        monkeypatch.setenv("CLIPFT_DOMAINS_PATH", ":".join(map(str, paths)))
        domains.settings.cache_clear()
        domains._all.cache_clear()

    yield put
    monkeypatch.delenv("CLIPFT_DOMAINS_PATH", raising=False)
    domains.settings.cache_clear()
    domains._all.cache_clear()


COLORS = {"red": (200, 40, 40), "blue": (40, 40, 200)}


def made_image(label: str, number: int, side: int = 48) -> Image.Image:
    """A noisy square of the class's color, different for each number; two numbers are never near-duplicates."""
    rng = np.random.default_rng(number + 10_000 * list(COLORS).index(label))
    coarse = rng.integers(0, 90, (16, 16, 3)).astype(np.uint8)
    noise = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST), dtype=int)
    return Image.fromarray((np.array(COLORS[label]) + noise - 45).clip(0, 255).astype(np.uint8))


def write_images(folder: Path, per_class: int = 40, groups: bool = False) -> Path:
    """A folder with images and `images.csv` (image, caption, label, group); returns the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,caption,label,group"]
    for label in COLORS:
        for number in range(per_class):
            name = f"{label}-{number:03d}.png"
            made_image(label, number).save(folder / name)
            group = f"{label}-{number // 4}" if groups else ""
            lines.append(f"{name},a photo of a {label} square.,{label} square,{group}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eighty images of two classes as a CSV table."""
    return write_images(tmp_path / "source")


TINY = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
}


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """A randomly initialized CLIP with a ViT of two layers, as a package folder that `model.start` can name."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**TINY["model_cfg"])
    weights = folder / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    weights.chmod(0o644)  # it writes for the owner alone; a team's services run as another user
    (folder / "open_clip_config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def small_spec(table: Path, tiny: Path):
    """A whole run that takes seconds: made images, the tiny model, 32 pixels, fp32 on the CPU."""
    from clipft_tasks.spec import RunSpec

    return RunSpec.from_flat(small(table, tiny))


def small(table: Path, tiny: Path, **more: object) -> dict[str, object]:
    """The same as flat fields, for forms and command lines."""
    return {
        "domain": "general",
        "source": str(table),
        "model.start": str(tiny),
        "resolution.train": 32,
        "resolution.evaluate": [32, 48],
        "train.epochs": 4,
        "train.batch": 16,
        "train.learning_rate": 1e-3,
        "memory.device": "cpu",
        "memory.precision": "fp32",
        "evaluate.bootstrap": 100,
        **more,
    }


def a_plan(sides: tuple[int, ...] = (32,), **values: object):
    """A plan as tests want it: fp32 on one CPU thread, parts of eight pairs."""
    from clipft_tasks.contracts.plan import Phase, Plan
    from clipft_tasks.core.decision import Decision

    decided = {
        "device": "cpu", "processes": 1, "precision": "fp32", "layout": "contiguous", "threads": 1, "workers": 1,
        "memory_gb": 64.0, "phases": (Phase(0, sides),), "attention": "fused",
        "checkpointing": "none", "micro_batch": dict.fromkeys(sides, 8), "accumulation": dict.fromkeys(sides, 2),
        "compile": False, "flops": dict.fromkeys(sides, 1e9),
    }  # fmt: skip
    return Plan(hardware=None, **{name: Decision(value, "test") for name, value in (decided | values).items()})


def a_work(
    spec, clip, dataset, folder: Path, log=lambda rows: None, *, plan=None, world=None, validate=None, general_score=None
):
    """What the loop trains: `spec` on `dataset`, without Airflow, MLflow or the stage around it. The last weights are kept
    where nobody judges them."""
    from clipft_tasks.data.loader import TrainingData
    from clipft_tasks.domains import get_domain
    from clipft_tasks.objectives import make
    from clipft_tasks.train import checkpoints, distributed, loop
    from clipft_tasks.train.schedule import sides

    domain = get_domain(spec.domain)
    every = sides(spec.resolution, 8)
    common = {
        "largest": max(every),
        "gray_bits": domain.gray_bits,
        "batch": spec.train.batch,
        "seed": spec.train.seed,
        "workers": 1,
    }
    return loop.Work(
        clip=clip,
        objective=make(spec.objective, dataset.classes),
        data=TrainingData.open(dataset, clip, domain.augment, sampling=spec.train.sampling, **common),
        spec=spec.train,
        resolution=spec.resolution,
        plan=plan or a_plan(every),
        checkpoints=checkpoints.Checkpoints(folder, "k"),
        log=log,
        world=world or distributed.ALONE,
        validate=validate,
        general_score=general_score,
    )
