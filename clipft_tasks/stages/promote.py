"""promote: the version becomes champion; the one before is kept as `previous`."""

from typing import Any

from ..core.console import say
from ..spec import RunSpec


def run(spec: RunSpec, version: str) -> dict[str, Any]:
    """Move the aliases. Returns: version, previous (number or "")."""
    from .. import tracking

    with tracking.retryable():
        previous = tracking.promote(spec.domain, version)
    say(f"Version {version} is champion of {spec.domain}" + (f"; version {previous} is kept as previous." if previous else "."))
    return {"version": version, "previous": previous or ""}
