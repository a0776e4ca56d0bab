"""The server keeps to its own OpenAPI document: schemathesis asks everything that the document allows, and what it forbids."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.live_server import TOKEN, Server

from serving.inference.schemas import EXAMPLE_PNG

pytestmark = pytest.mark.slow

JSON, FORM = "application/json", "multipart/form-data"
INFERENCE = "^/v1/(search|embeddings|embed/images|embed/texts|similarity|classify)$"
Document = dict[str, Any]  # OpenAPI

# No schema says which bytes are an image, which of two fields is left out, and that two lists are of one length: what it allows is
# taken where the document is narrowed by these, below.
WHOLE = f"""
[[operations]]
include-path-regex = "{INFERENCE}"
[operations.checks]
positive_data_acceptance.enabled = false

# It cannot write NDJSON; tests/behaviour/test_server_bulk.py does.
[[operations]]
include-path-regex = "^/v1/bulk/"
enabled = false
"""
# In a form everything is text, so that what JSON's schema forbids (a number as a text) is no other form; and again the images.
FORMS = "[checks]\npositive_data_acceptance.enabled = false\nnegative_data_rejection.enabled = false\n"
# What is not in the narrowed document may be in the whole one.
NARROWED = "[checks]\nnegative_data_rejection.enabled = false\n"


def asked(server: Server, document: Document, config: str, folder: Path, *, phases: str = "examples,coverage,fuzzing") -> str:
    """What schemathesis says of the server, which keeps to the document."""
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("schemathesis is not installed")
    (folder / "schemathesis.toml").write_text(config)
    (folder / "openapi.json").write_text(json.dumps(document))
    done = subprocess.run(
        [
            command, "--config-file", "schemathesis.toml", "run", "openapi.json", "--url", server.url,
            "--header", f"Authorization: Bearer {TOKEN}", "--phases", phases,
            "--max-examples", "4", "--seed", "1", "--request-timeout", "30", "--no-color",
        ],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert server.get("/healthz").status_code == 200
    return done.stdout


def of_bodies(document: Document, kind: str, paths: str = "") -> Document:
    """The document with bodies of one kind alone, where there is one; of operations whose paths fit."""
    out = copy.deepcopy(document)
    out["paths"] = {path: methods for path, methods in out["paths"].items() if re.match(paths, path)}
    for methods in out["paths"].values():
        for name, operation in list(methods.items()):
            content = operation.get("requestBody", {}).get("content", {})
            if kind in content:
                operation["requestBody"]["content"] = {kind: content[kind]}
            elif paths:
                del methods[name]
    return out


def narrowed(document: Document) -> Document:
    """The document of inference by JSON, with no more than this model takes."""
    out = of_bodies(document, JSON, INFERENCE)
    for path, methods in out["paths"].items():
        schema = methods["post"]["requestBody"]["content"][JSON]["schema"]
        fields = schema["properties"]
        for name in {"dimensions", "version", "domain", "model", "messages", "coverage", "explain"} & fields.keys():
            del fields[name]
        if "paired" in fields:
            fields["paired"] = {"const": False}
        if path == "/v1/search":
            del fields["image"]
        if path in ("/v1/search", "/v1/embeddings"):
            one = "text" if path == "/v1/search" else "input"
            fields[one], schema["required"] = {"type": "string", "pattern": "^[a-z ]{1,40}$"}, [one]
            methods["post"]["requestBody"]["content"][JSON].pop("example", None)
    text = json.dumps(out)
    return json.loads(re.sub(r'"contentEncoding": "base64"', f'"enum": ["{EXAMPLE_PNG}"]', text))


def test_the_server_answers_as_its_document_says(server: Server, tmp_path: Path):
    document = server.get("/openapi.json").json()
    said = asked(server, of_bodies(document, JSON), WHOLE, tmp_path)
    operations = sum(len(methods) for path, methods in document["paths"].items() if not path.startswith("/v1/bulk/"))
    assert operations > 20 and re.search(rf"Tested: {operations}\b", said), "all operations"


def test_it_takes_what_the_document_allows_and_the_model_can_answer(server: Server, tmp_path: Path):
    assert re.search(r"Tested: 6\b", asked(server, narrowed(server.get("/openapi.json").json()), NARROWED, tmp_path))


def test_forms_are_answered_as_the_document_says(server: Server, tmp_path: Path):
    forms = of_bodies(server.get("/openapi.json").json(), FORM, INFERENCE)
    assert re.search(r"Tested: [4-9]\b", asked(server, forms, FORMS, tmp_path))
