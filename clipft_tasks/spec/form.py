"""The form of a run: the JSON schema of every field, by dotted name. Airflow's forms and the command line are made of it."""

from collections.abc import Iterable
from typing import Any, TypeAlias

from ..domains import domain_names, get_domain
from . import fields
from .run_spec import SECTIONS, RunSpec

# A JSON schema is free-form: which keywords it has differs by field, and pydantic decides that.
JsonSchema: TypeAlias = dict[str, Any]


def form(sections: Iterable[str] = tuple(SECTIONS)) -> dict[str, JsonSchema]:
    """The JSON schema of each field by dotted name: type, title, description, limits, default and section heading.

    A field that some domain sets has default null, so that an untouched form leaves the choice to the domain.

    Args:
        sections: keys of `SECTIONS` to include; "run" holds domain, source and dataset.
    """
    wanted = list(sections)
    schema = RunSpec.model_json_schema()
    by_domain = {name for d in domain_names() for name in fields.current(get_domain(d).defaults)}
    out: dict[str, JsonSchema] = {}
    for name, prop in schema["properties"].items():
        ref = prop.get("$ref") or (prop.get("allOf") or [{}])[0].get("$ref")
        if ref:
            if name in wanted:
                for leaf, inner in schema["$defs"][ref.rsplit("/", 1)[1]]["properties"].items():
                    dotted = f"{name}.{leaf}"
                    out[dotted] = _field(dotted, inner, SECTIONS[name], dotted in by_domain)
        elif "run" in wanted:
            out[name] = _field(name, prop, SECTIONS["run"], name in by_domain)
    if "domain" in out:
        out["domain"]["enum"] = domain_names()
    return out


def _field(dotted: str, prop: JsonSchema, section: str, domain_decides: bool) -> JsonSchema:
    out = {k: v for k, v in prop.items() if k not in ("anyOf", "title")}
    if "anyOf" in prop:  # pydantic writes Optional as anyOf; forms and CLIs read a list of types
        first = next(p for p in prop["anyOf"] if p.get("type") != "null")
        out |= first | {"type": [first["type"], "null"]}
    # Titles as people write them: "Learning rate", not "Learning Rate".
    out["title"] = dotted.rsplit(".", 1)[-1].replace("_", " ").capitalize()
    out["section"] = section
    if domain_decides:
        out["description"] = f"{prop.get('description', '')} (empty: the domain's choice, else {prop.get('default')})"
        out["type"] = [out["type"], "null"] if isinstance(out["type"], str) else out["type"]
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
        out["default"] = None
    return out
