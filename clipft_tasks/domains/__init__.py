"""The menu of domains: the four that ship, entry points of group `clipft.domains`, and files on `CLIPFT_DOMAINS_PATH`.

A domain of your own is one Python file that defines `DOMAIN = Domain(...)`; `clipft domain new NAME` writes one to start with.
"""

import importlib.util
import os
from functools import cache
from pathlib import Path

from ..core.errors import ClipftError
from ..core.plugins import instances
from ..core.settings import settings
from . import general, industrial, medical, scientific
from .base import Augment, Checks, Domain, spoken

__all__ = ["Augment", "Checks", "Domain", "domain_names", "get_domain", "spoken"]


SHIPPED = {m.DOMAIN.name: m.DOMAIN for m in (industrial, medical, scientific, general)}
REGISTRY = instances("domain", Domain, SHIPPED)


def _from_file(path: Path) -> Domain:
    module_spec = importlib.util.spec_from_file_location(f"clipft_domain_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ClipftError(
            f"domain file {path}",
            "it is not a Python file",
            "Point CLIPFT_DOMAINS_PATH at .py files.",
            code="domain.unreadable_file",
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except ClipftError as error:  # a field of an earlier release
        raise ClipftError(f"domain file {path}", f"{error.what}: {error.why}", error.fix, code=error.code) from error
    except Exception as error:  # whatever a file of a person's own may raise
        raise ClipftError(
            f"domain file {path}",
            f"it cannot be read: {error}",
            "`clipft domain new` writes one that can.",
            code="domain.unreadable_file",
        ) from error
    found = getattr(module, "DOMAIN", None)
    if not isinstance(found, Domain):
        raise ClipftError(
            f"domain file {path}",
            "it defines no DOMAIN = Domain(...)",
            "`clipft domain new` writes one that does.",
            code="domain.not_defined",
        )
    return found


@cache
def _all() -> dict[str, Domain]:
    domains = SHIPPED | {own.name: own for own in REGISTRY.offered()}
    for part in filter(None, settings().domains_path.split(os.pathsep)):
        path = Path(part).expanduser()
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            own = _from_file(file)
            domains[own.name] = own
    return domains


def domain_names() -> list[str]:
    """Every domain that can be named: those that ship, entry points, and files on `CLIPFT_DOMAINS_PATH`."""
    return list(_all())


def get_domain(name: str) -> Domain:
    """The profile called `name`. Raises ClipftError with the names there are."""
    try:
        return _all()[name]
    except KeyError:
        raise ClipftError(
            f"domain {name!r}", "there is no such domain", f"Known: {', '.join(_all())}.", code="domain.not_found"
        ) from None
