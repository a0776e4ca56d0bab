"""Classes by name: what ships, what other packages offer as entry points, and `module:Class`."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from .errors import ClipftError


def find(kind: str, name: str, menu: Mapping[str, type], base: type) -> Any:
    """The class called `name`.

    Args:
        kind: what it is, for messages; its plural with `clipft.` before it is the group of entry points.
        base: what it must be a subclass of.
    Raises: ClipftError with the names there are.
    """
    what = f"{kind} {name!r}"
    if name in menu:
        return menu[name]
    plural = kind[:-1] + "ies" if kind.endswith("y") else kind + "s"
    entry = next(iter(entry_points(group=f"clipft.{plural}", name=name)), None)
    try:
        if entry is not None:
            found = entry.load()
        elif ":" in name:
            module, _, attribute = name.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            raise ClipftError(what, "there is none of that name", f"Known: {', '.join(menu)}, or module:Class.")
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ClipftError(what, str(error), "Is its package installed, and its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ClipftError(what, f"it is not a subclass of {base.__module__.removesuffix('.base')}.{base.__name__}")
    return found
