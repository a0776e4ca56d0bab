"""promote: the version becomes champion; the one before is kept as `previous`."""

from ..contracts.stages import PromoteResult
from ..core.console import say
from ..spec import RunSpec


def run(spec: RunSpec, version: str) -> PromoteResult:
    """Move the aliases."""
    from .. import tracking

    with tracking.retryable():
        previous = tracking.promote(spec.domain, version)
    say(f"Version {version} is champion of {spec.domain}" + (f"; version {previous} is kept as previous." if previous else "."))
    return PromoteResult(version=version, previous=previous or "")
