"""Writing a domain as a file that a person goes on with."""

import json
import keyword
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

from ..core.errors import ClipftError
from . import Augment, Checks, Domain, domain_names, get_domain

WIDTH = 128

HEAD = '''"""{title}: say here in a sentence what these images are.

Begun like `{like}`. What equals the general default may be deleted. Every choice has its reason in `why`: correct both
together; `clipft domains` shows them. `CLIPFT_DOMAINS_PATH` names this file or its folder.
"""

from clipft_tasks.domains import Augment, Checks, Domain

DOMAIN = '''


def write(name: str, like: str, path: Path) -> Path:
    """Write a new domain that begins with another's choices; returns the file's absolute path.

    Raises: ClipftError for a name that cannot be one or is taken, a domain `like` that is not there, or a file that is.
    """
    if not name.isidentifier() or name != name.lower() or not name.isascii() or keyword.iskeyword(name):
        raise ClipftError(
            f"domain name {name!r}",
            "it becomes a folder and a tag",
            "Use lower-case letters, digits and _.",
            code="domain.invalid_name",
        )
    if name in domain_names():
        raise ClipftError(f"domain {name!r}", "there is one of that name", "Take another name.", code="domain.name_taken")
    if path.suffix != ".py":
        raise ClipftError(f"domain file {path}", "it would not be read", "Let it end in .py.", code="domain.invalid_path")
    title = name.replace("_", " ").capitalize()
    own = replace(get_domain(like), name=name, title=title)
    text = HEAD.format(title=title, like=like) + _source(own, "") + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ClipftError(
            f"domain file {path}", "it exists and is left as it is", "Name another with --path.", code="domain.file_exists"
        ) from None
    except OSError as error:
        raise ClipftError(
            f"domain file {path}",
            f"it cannot be written: {error.strerror}",
            "Choose another folder.",
            code="domain.not_writable",
        ) from None
    return path.absolute()


def _source(value: object, indent: str) -> str:
    """A value as Python, one item a line, each field of a profile under what it is."""
    inner = indent + "    "
    if is_dataclass(value):
        kind: type[Augment | Checks | Domain] = type(value)  # type: ignore[assignment]
        hints = get_type_hints(kind, include_extras=True)
        items = []
        for each in fields(value):
            hint = hints[each.name]
            about = hint.__doc__ if is_dataclass(hint) else " ".join(getattr(hint, "__metadata__", ()))
            items += textwrap.wrap(about or "", WIDTH, initial_indent=f"{inner}# ", subsequent_indent=f"{inner}# ")
            items.append(f"{inner}{each.name}={_source(getattr(value, each.name), inner)},")
        return "\n".join([f"{kind.__name__}(", *items, f"{indent})"])
    if isinstance(value, Mapping):
        items = [f"{inner}{_source(k, inner)}: {_source(v, inner)}," for k, v in value.items()]
        return "\n".join(["{", *items, f"{indent}}}"]) if items else "{}"
    if isinstance(value, tuple | list):
        first, last = "()" if isinstance(value, tuple) else "[]"
        return "\n".join([first, *(f"{inner}{_source(v, inner)}," for v in value), indent + last]) if value else first + last
    if isinstance(value, str):
        lines = textwrap.wrap(value, WIDTH - len(inner) - 2, drop_whitespace=False) or [""]
        quoted = [json.dumps(line, ensure_ascii=False) for line in lines]
        return quoted[0] if len(quoted) == 1 else "\n".join(["(", *(inner + line for line in quoted), f"{indent})"])
    return repr(value)
