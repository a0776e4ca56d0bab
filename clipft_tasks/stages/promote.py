"""promote: the version becomes champion; the one before is kept as `previous`."""

from ..contracts.stages import PromoteResult
from ..core.console import say
from ..core.errors import ClipftError
from ..spec import RunSpec
from .champion import changing


def run(spec: RunSpec, version: str, opponent: str | None = None, dag_run: str = "") -> PromoteResult:
    """Move the aliases, under the domain's lease, which `deploy` and `verify` go on with.

    Args:
        opponent: which version the gate compared it with; "" for the start model, None where no gate was asked (a rollback).
    Raises: BusyError while another run changes the champion; ClipftError when the champion is another by now, and the gate, asked
        again, says no.
    """
    from .. import tracking

    with changing(spec.domain, dag_run) as lease:
        now = tracking.version_number(tracking.champion(spec.domain))
        if opponent is not None and now not in (opponent, version):
            _ask_again(spec, version, f"version {opponent}" if opponent else "the start model", now)
        lease.check()
        with tracking.retryable():
            previous = tracking.promote(spec.domain, version)
    say(f"Version {version} is champion of {spec.domain}" + (f"; version {previous} is kept as previous." if previous else "."))
    return PromoteResult(version=version, previous=previous or "")


def _ask_again(spec: RunSpec, version: str, opponent: str, now: str) -> None:
    """Hold the version against the champion of today, here and now."""
    from .. import tracking
    from . import evaluate, gate

    say(f"The gate compared version {version} with {opponent}; version {now} is champion since. It is asked again.")
    run_id = str(tracking.resolve_version(f"models:/{tracking.model_name(spec.domain)}/{version}").run_id)
    try:
        gate.run(spec, run_id, [evaluate.run(spec, run_id, size) for size in spec.resolution.evaluated])
    except ClipftError as error:
        raise ClipftError(
            f"version {version} of {spec.domain}",
            f"version {now} became champion after the gate had compared it with {opponent}, and against version {now} {error.why}",
            "The champion stays. The same form again evaluates it where models are evaluated, and asks the gate.",
            code="promote.gate",
        ) from None
