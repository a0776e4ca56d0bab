"""The server keeps to its own OpenAPI document: schemathesis asks everything that the document allows, and what it forbids."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.live_server import TOKEN, Server

pytestmark = pytest.mark.slow

# No schema says which bytes are an image, and in a form everything is text.
CONFIG = """
[[operations]]
include-path-regex = "^/v1/(search|embeddings|embed/images|embed/texts|similarity|classify)$"
[operations.checks]
positive_data_acceptance.enabled = false
negative_data_rejection.enabled = false

# It cannot write NDJSON; tests/behaviour/test_server_bulk.py does.
[[operations]]
include-path-regex = "^/v1/bulk/"
enabled = false
"""


def test_the_server_answers_as_its_document_says(server: Server, tmp_path: Path):
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            command, "--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{server.url}/openapi.json",
            "--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing",
            "--max-examples", "4", "--seed", "1", "--request-timeout", "30", "--no-color",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    paths = server.get("/openapi.json").json()["paths"]
    operations = sum(len(methods) for path, methods in paths.items() if not path.startswith("/v1/bulk/"))
    assert operations > 20 and re.search(rf"Tested: {operations}\b", done.stdout), "all operations"
    assert server.get("/healthz").status_code == 200
