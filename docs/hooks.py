"""What `make docs` adds to the pages: the table of a run's fields, from the same schema as the Airflow form."""

from typing import Any

from clipft_tasks.spec import form

MARK = "<!-- every field -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:  # what else mkdocs hands over is not needed
    return markdown.replace(MARK, fields()) if MARK in markdown else markdown


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
        cells = (f"`{name}`", kind, default, field.get("description", ""))
        out.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out)
