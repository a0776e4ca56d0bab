"""Lists and named values as people write them on a command line, and YAML."""

import re
from typing import Any

import yaml

from ..core.errors import ClipftError


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, as in JSON and Python (1.1 asks for a dot in it)."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z"), [*"-+0123456789"])


def read_yaml(text: str) -> object:
    """What YAML or JSON says. Raises yaml.YAMLError."""
    read: object = yaml.load(text, Loader=_Loader)
    return read


def write_yaml(content: object) -> str:
    """YAML, in the order given."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


def as_list(value: object, separator: str = "", numbers: bool = False) -> list[Any]:  # of whatever the spec's field takes
    """A list: `96, 128`, `96 128`, `[96, 128]`, or already one.

    Args:
        separator: what stands between its entries where these are sentences.
        numbers: digits become integers.
    """
    if isinstance(value, str) and separator:
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, str):
        words = re.sub(r"\s*([=>])\s*", r"\1", value).strip("[] ").replace(",", " ").split()  # `name = weight` is one
        return [int(w) if numbers and w.isdecimal() else w for w in words]
    return value if isinstance(value, list) else [value]


def as_object(name: str, value: object) -> object:
    """Named values: `hardness=0.5, distillation.weight=1`, or YAML and JSON alike; what is no text stays as it is.

    Raises: ClipftError that says `name`.
    """
    if not isinstance(value, str):
        return value
    read: object = None
    try:
        if value.lstrip().startswith("{"):
            read = read_yaml(value)
        else:
            read = {key.strip(): read_yaml(text) for key, text in (part.split("=", 1) for part in value.split(","))}
    except (yaml.YAMLError, ValueError):
        pass
    if not isinstance(read, dict):
        raise ClipftError(
            f"{name} {value!r}",
            "it is not a list of name=value",
            "For example hardness=0.5,text_weight=0.4.",
            code="cli.invalid_value",
        )
    return {str(k): v for k, v in read.items()}
