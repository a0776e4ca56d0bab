"""Lists and named values as people write them on a command line."""

import re
from typing import Any

import yaml

from ..core.errors import ClipftError


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
        read = yaml.safe_load(value) if value.lstrip().startswith("{") else dict(p.split("=", 1) for p in value.split(","))
    except (yaml.YAMLError, ValueError):
        pass
    if not isinstance(read, dict):
        raise ClipftError(f"{name} {value!r}", "it is not a list of name=value", "For example hardness=0.5,text_weight=0.4.")
    return {str(k).strip(): yaml.safe_load(v) if isinstance(v, str) else v for k, v in read.items()}
