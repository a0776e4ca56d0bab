"""Each extra installs alone, from the wheel that a user gets, and what it is for imports with nothing else there.

Packages come from the package index: run on demand (`make extras`) and in CI.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.can_install import MACOS

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.extras, pytest.mark.timeout(900)]

LIGHT = """
from click.testing import CliRunner
from clipft_tasks.cli import main
import clipft_tasks.client
from clipft_tasks.spec import RunSpec
RunSpec.from_flat({"domain": "medical"})
for command in (["--help"], ["--version"], ["finetune", "--help"]):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
"""
PROGRAMS = {
    "": LIGHT,
    "model": "import clipft_tasks.model.build, clipft_tasks.model.package, clipft_tasks.objectives, clipft_tasks.devices.memory",
    "tracking": "from clipft_tasks import tracking; tracking.client().search_registered_models()",
    "data": "import clipft_tasks.data.versioning, clipft_tasks.data.expectations, clipft_tasks.data.report",
    "gcs": "import fsspec; fsspec.get_filesystem_class('gs')",
    "slides": "import openslide, clipft_tasks.data.readers.slides",
    "codecs": "import imagecodecs; imagecodecs.jpeg_decode; import clipft_tasks.data.deep_jpeg",
    "mlflow": "import boto3, mlflow.server",
    "search": "from clipft_tasks.search.index import vectors_of; vectors_of('cosine', 4)",
    "serving": "from serving.inference.app import create_app; create_app()",
    "fast": "import onnx, onnxruntime, onnxscript, openvino",
    "train": "import clipft_tasks.stages.finetune, clipft_tasks.stages.evaluate, clipft_tasks.stages.tune, clipft_tasks.train.loop",
    "airflow": "import airflow.sdk, airflow.providers.edge3",
    "lineage": "import openlineage.client.event_v2, openlineage.client.facet_v2",
    "tracing": "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http",
}


def uv() -> str:
    return (
        str(Path(sys.executable).with_name("uv"))
        if Path(sys.executable).with_name("uv").exists()
        else shutil.which("uv") or "uv"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder stays in the checkout."""
    source = tmp_path_factory.mktemp("source") / "clipft"
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if name.startswith(("clipft_tasks/", "serving/", "pyproject.toml", "README.md", "LICENSE", "NOTICE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, source / name)
    subprocess.run([uv(), "build", "--quiet", "--wheel", "--out-dir", str(source / "dist"), str(source)], check=True)
    [made] = (source / "dist").glob("*.whl")
    return made


@pytest.mark.parametrize("extra", PROGRAMS, ids=lambda e: e or "none")
def test_an_extra_installs_alone_and_what_it_is_for_imports(wheel: Path, extra: str, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    what = f"clipft[{extra}] @ {wheel.as_uri()}" if extra else f"clipft @ {wheel.as_uri()}"
    install = [
        uv(),
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "--constraint",
        str(PROJECT / "requirements.lock"),
        what,
    ]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLIPFT_", "AIRFLOW", "PYTHONPATH"))}
    env = kept | {"CLIPFT_HOME": str(tmp_path / "home"), "AIRFLOW_HOME": str(tmp_path / "airflow")}
    done = subprocess.run([str(python), "-c", PROGRAMS[extra]], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


SOURCES_ONLY = ("antlr4-python3-runtime", "jsonpath-rw")  # in Python alone, so that anything can build them


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_lock_has_packages_for_the_oldest_macos_that_is_supported(python, tmp_path):
    """macOS 14 on arm64; nothing is downloaded but what the index says of each package."""
    command = [uv(), "pip", "install", "--dry-run", "--no-deps", "--only-binary", ":all:", "--target", str(tmp_path)]
    for package in SOURCES_ONLY:
        command += ["--no-binary", package]
    command += ["--python-platform", "aarch64-apple-darwin", "--python-version", python, "--requirement", "requirements.lock"]
    env = os.environ | {"MACOSX_DEPLOYMENT_TARGET": f"{MACOS}.0"}
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch==" in done.stderr and "Would install" in done.stderr
