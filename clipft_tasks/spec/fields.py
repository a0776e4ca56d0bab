"""How a field of the spec is spelled: `section.field` in forms, options, messages, MLflow and flat files.

YAML and JSON nest the same names. This is the one place where a spelling becomes another.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import TypeVar

from ..core.errors import ClipftError

V = TypeVar("V")

# Fields by the name of an earlier release. They are still read, with a warning where a person wrote them.
RENAMED = {"objective.also": "objective.auxiliary", "evaluate.probe": "evaluate.linear_probe"}
# Fields that earlier releases did not have, with the value at which they change nothing, as null does.
ADDED: Mapping[str, object] = {
    "evaluate.metrics": [],
    "data.frames": "auto",
    **dict.fromkeys(("data.levels", "data.images_root", "data.separator", "data.names_file", "data.links_root"), ""),
    **{"data.tile_pixels": 256, "data.tile_microns": 0.5, "data.tile_tissue": 0.1},
    **dict.fromkeys(("data.license", "data.origin", "data.consent"), ""),
    **dict.fromkeys(("data.min_side", "data.min_class_share")),
    "data.outliers": 0,
    "train.rate_factor": 1.0,
    "train.beta2": 0.999,
    **{"train.lora_text_rank": None, "train.lora_alpha": None, "train.lora_variant": "plain"},
    "train.method": "recipe",
}
OPTIONS = "objective.options"  # a mapping of its own: `objective.options.NAME` is one entry of it


def flatten(nested: Mapping[str, V], sections: Collection[str]) -> dict[str, V]:
    """Sections as dotted names; names that are dotted already stay."""
    out: dict[str, V] = {}
    for name, value in nested.items():
        if name in sections and isinstance(value, Mapping):
            out |= {f"{name}.{field}": v for field, v in value.items()}
        else:
            out[name] = value
    return out


def nest(flat: Mapping[str, object], sections: Collection[str]) -> dict[str, object]:
    """Dotted names as sections. A name that fits nowhere stays as it is, so that it is refused by its name."""
    nested: dict[str, object] = {}
    options = {name: value for name, value in flat.items() if name.startswith(f"{OPTIONS}.")}
    whole = flat.get(OPTIONS, {})
    if options and isinstance(whole, Mapping):
        single = {name.removeprefix(f"{OPTIONS}."): value for name, value in options.items()}
        flat = {name: value for name, value in flat.items() if name not in options} | {OPTIONS: {**whole, **single}}
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        inside = nested.setdefault(section, {}) if section in sections else None
        if isinstance(inside, dict):
            inside[field] = value
        else:
            nested[name] = value
    return nested


def current(flat: Mapping[str, object]) -> dict[str, object]:
    """Names of an earlier release as those of this one, with a warning. Raises ClipftError where both are given."""
    out = {str(name): value for name, value in flat.items()}
    for old, new in RENAMED.items():
        if old in out:
            if new in out:
                raise ClipftError(
                    f"the fields {old} and {new}", "they are one and the same", f"Give {new} alone.", code="spec.given_twice"
                )
            warnings.warn(f"The field {old} is called {new} now; write that.", stacklevel=3)
            out[new] = out.pop(old)
    return out


def with_current_names(nested: Mapping[str, object]) -> dict[str, object]:
    """A stored spec of an earlier release with the names of this one."""
    return _renamed(nested, RENAMED)


def with_first_names(nested: Mapping[str, object]) -> dict[str, object]:
    """The names that fields had first, without later ones that change nothing: what identities are made of, so that a new name
    or field alone does not repeat work."""
    out = _renamed(nested, {new: old for old, new in RENAMED.items()})
    for added, value in ADDED.items():
        section, _, field = added.partition(".")
        inside = out.get(section)
        if isinstance(inside, Mapping) and inside.get(field) in (value, None):
            out[section] = {f: v for f, v in inside.items() if f != field}
    return out


def _renamed(nested: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    out = dict(nested)
    for before, after in names.items():
        (section, field), name = before.split("."), after.rpartition(".")[2]
        inside = out.get(section)
        if isinstance(inside, Mapping) and field in inside and name not in inside:
            out[section] = {name if f == field else f: v for f, v in inside.items()}
    return out


def identifier(name: str) -> str:
    """A field as a Python identifier, for keyword arguments."""
    return name.replace(".", "__")


def of_identifier(name: str) -> str:
    return name.replace("__", ".")
