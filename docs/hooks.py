"""What `make docs` adds to the pages: tables that derive from the code, so that no page repeats it."""

import ast
from pathlib import Path
from typing import Any

from clipft_tasks.spec import form
from clipft_tasks.stages.chain import CHAIN

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = ("clipft_tasks", "serving", "plugins", "dags", "deploy", "examples", "bench")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:  # what else mkdocs hands over is not needed
    for mark, made in (("<!-- every field -->", fields), ("<!-- every stage -->", stages), ("<!-- every module -->", modules)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def fields() -> str:
    """Markdown: a heading for each section of the form, and a row for each field."""
    out: list[str] = []
    section = ""
    for name, field in form().items():
        if field["section"] != section:
            section = field["section"]
            out += ["", f"## {section}", "", "| field | type | default | |", "|---|---|---|---|"]
        kinds = [field["type"]] if isinstance(field["type"], str) else [t for t in field["type"] if t != "null"]
        kind = ", ".join(f"`{choice}`" for choice in field["enum"] if choice) if "enum" in field else " or ".join(kinds)
        default = "" if field.get("default") in (None, "", [], {}) else f"`{field['default']}`"
        out.append(row(f"`{name}`", kind, default, field.get("description", "")))
    return "\n".join(out)


def stages() -> str:
    """Markdown: a row for each stage of the chain."""
    out = ["| stage | does | after | where |", "|---|---|---|---|"]
    for name, stage in CHAIN.items():
        out.append(
            row(f"`{name}`", stage.summary, ", ".join(stage.needs), "accelerator" if stage.accelerator else "control plane")
        )
    return "\n".join(out)


def modules() -> str:
    """Markdown: a heading for each package, and a row for each file with the first line of its docstring."""
    out: list[str] = []
    package = None
    for path in sorted(p for folder in FOLDERS for p in (PROJECT / folder).rglob("*.py")):
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0].replace("\n", " ").lstrip("# ")
        if not said:
            continue
        if path.parent != package:
            package = path.parent
            out += ["", f"## {package.relative_to(PROJECT)}", "", "| file | |", "|---|---|"]
        out.append(row(f"`{path.name}`", said))
    return "\n".join(out)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(modules())
