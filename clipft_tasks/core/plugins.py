"""Registries of things by name: what ships, what other packages offer as entry points, and `module:attribute`.

A package that owns a kind of thing declares its registry once; adding one that ships is one entry in it:

    OBJECTIVES = classes("objective", Objective, {"info_nce": InfoNCE})
    OBJECTIVES.load("info_nce"), OBJECTIVES.load("my_package.losses:MyLoss")
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeGuard, TypeVar

from .errors import ClipftError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """All things of one kind.

    Attributes:
        kind: what it is, in the singular, for messages ("objective").
        shipped: those of clipft by name; `module:attribute` for one that is imported when it is asked for.
        fits: whether an object is of this kind.
        wanted: what `fits` asks for, for messages ("a subclass of …").
    """

    kind: str
    shipped: Mapping[str, T | str]
    fits: Callable[[object], TypeGuard[T]]
    wanted: str

    @property
    def group(self) -> str:
        """The group of entry points under which other packages offer theirs."""
        return f"clipft.{self.kind[:-1] + 'ies' if self.kind.endswith('y') else self.kind + 's'}"

    def names(self) -> list[str]:
        """Names of those that ship, then of those that installed packages offer."""
        return list(dict.fromkeys([*self.shipped, *(entry.name for entry in entry_points(group=self.group))]))

    def load(self, name: str) -> T:
        """The thing called `name`, or at `module:attribute`. What ships goes before what others call the same.

        Raises: ClipftError with the names there are.
        """
        shipped = self.shipped.get(name)
        if isinstance(shipped, str):
            return self._checked(name, lambda: _imported(shipped))
        if shipped is not None:
            return shipped
        entry = next(iter(entry_points(group=self.group, name=name)), None)
        if entry is not None:
            return self._checked(name, entry.load)
        if ":" in name:
            return self._checked(name, lambda: _imported(name))
        raise ClipftError(
            f"{self.kind} {name!r}",
            "there is none of that name",
            f"Known: {', '.join(self.names()) or 'none yet'}; or one of your own as module:Class.",
            code="plugin.not_found",
        )

    def offered(self) -> list[T]:
        """What installed packages offer. Raises ClipftError as `load` does."""
        return [self._checked(entry.name, entry.load) for entry in entry_points(group=self.group)]

    def _checked(self, name: str, load: Callable[[], object]) -> T:
        what = f"{self.kind} {name!r}"
        try:
            found = load()
        except (ImportError, AttributeError, SyntaxError) as error:
            raise ClipftError(
                what, str(error), "Is its package installed, and its folder on PYTHONPATH?", code="plugin.not_importable"
            ) from error
        if not self.fits(found):
            raise ClipftError(what, f"it is not {self.wanted}", code="plugin.wrong_kind")
        return found


def classes(kind: str, base: type[T], shipped: Mapping[str, type[T] | str]) -> Registry[type[T]]:
    """A registry of subclasses of `base`."""

    def fits(found: object) -> TypeGuard[type[T]]:
        return isinstance(found, type) and issubclass(found, base)

    return Registry(kind, shipped, fits, f"a subclass of {_named(base)}")


def instances(kind: str, base: type[T], shipped: Mapping[str, T | str]) -> Registry[T]:
    """A registry of objects of the class `base`."""

    def fits(found: object) -> TypeGuard[T]:
        return isinstance(found, base)

    return Registry(kind, shipped, fits, f"an instance of {_named(base)}")


def source_digest(kind: type) -> str:
    """A digest of the file that defines a class: edited code is other code."""
    path = inspect.getsourcefile(kind)
    return hashlib.sha256(Path(path).read_bytes() if path else b"").hexdigest()[:16]


def _imported(path: str) -> object:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _named(base: type) -> str:
    return f"{base.__module__.removesuffix('.base')}.{base.__name__}"
