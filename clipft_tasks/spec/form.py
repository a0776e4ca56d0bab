"""The form of a run: the JSON schema of every field, by dotted name. Airflow's forms and the command line are made of it."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any, TypeAlias

from ..domains import domain_names, get_domain
from . import fields
from .run_spec import SECTIONS, RunSpec

# A JSON schema is free-form: which keywords it has differs by field, and pydantic decides that.
JsonSchema: TypeAlias = dict[str, Any]
LONGEST = 60  # characters of a domain's choice that a sentence has room for


def form(sections: Iterable[str] = tuple(SECTIONS)) -> dict[str, JsonSchema]:
    """The JSON schema of each field by dotted name: type, title, description, limits, default and section heading.

    A field that some domain sets has default null, so that an untouched form leaves the choice to the domain. `domain` itself has
    none: whoever starts a run says which. `values_display` words the values of a choice, by value, as Airflow's form reads it.

    Args:
        sections: keys of `SECTIONS` to include; "run" holds domain, source and dataset.
    """
    headings = {SECTIONS[name] for name in sections}
    return deepcopy({name: field for name, field in _fields(tuple(domain_names())).items() if field["section"] in headings})


@cache
def _fields(domains: tuple[str, ...]) -> dict[str, JsonSchema]:
    """Every field, where there are these domains. Made once: commands and DAG files ask for it again and again."""
    schema = RunSpec.model_json_schema()
    out: dict[str, JsonSchema] = {}
    for name, prop in schema["properties"].items():
        ref = prop.get("$ref") or (prop.get("allOf") or [{}])[0].get("$ref")
        if ref:
            for leaf, inner in schema["$defs"][ref.rsplit("/", 1)[1]]["properties"].items():
                out[f"{name}.{leaf}"] = _field(f"{name}.{leaf}", inner, SECTIONS[name])
        else:
            out[name] = _field(name, prop, SECTIONS["run"])
    out["domain"] |= {
        "enum": [*domains],
        "default": None,
        "values_display": {name: f"{name}: {get_domain(name).title}" for name in domains},
    }
    return out


def _field(dotted: str, prop: JsonSchema, section: str) -> JsonSchema:
    out = {k: v for k, v in prop.items() if k != "anyOf"}
    if "anyOf" in prop:  # pydantic writes Optional as anyOf; forms and CLIs read a list of types
        first = next(p for p in prop["anyOf"] if p.get("type") != "null")
        out |= first | {"type": [first["type"], "null"]}
    leaf = dotted.rsplit(".", 1)[-1].replace("_", " ")
    if out.get("title") in (None, leaf.title()):  # pydantic's own: "Learning Rate"
        out["title"] = leaf.capitalize()
    out["section"] = section
    if choice := _choice(dotted, prop.get("default")):
        out["description"] = f"{prop.get('description', '')} (empty: {choice})"
        out["type"] = [out["type"], "null"] if isinstance(out["type"], str) else out["type"]
        if "enum" in out:
            out |= {"enum": [*out["enum"], None], "values_display": {"null": choice}}
        out["default"] = None
    return out


def _choice(dotted: str, default: object) -> str:
    """What an empty field means where a domain decides: `the domain's choice: pad in medical, else crop`; "" where none does."""
    by_value: dict[str, list[str]] = {}
    for name in domain_names():
        defaults = fields.current(get_domain(name).defaults)
        if dotted in defaults:
            by_value.setdefault(_shown(defaults[dotted]), []).append(name)
    if not by_value:
        return ""
    if max(map(len, by_value)) > LONGEST:
        return "the domain's choice, as `clipft domains` lists it"
    chosen = [
        f"{value} in {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}" for value, names in by_value.items()
    ]
    return f"the domain's choice: {', '.join([*chosen, f'else {_shown(default)}'])}"


def _shown(value: object) -> str:
    """A value as a sentence has it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "none"
    return str(value)
