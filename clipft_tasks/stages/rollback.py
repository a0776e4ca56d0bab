"""rollback: which version takes the champion's place again. It changes nothing; promote, deploy and verify follow.

Choosing is a stage of its own so that a retry of what follows goes to the same version, instead of forward again.
"""

from ..contracts.stages import RollbackResult
from ..core.console import say
from ..core.errors import ClipftError
from ..spec import RunSpec


def run(spec: RunSpec, version: str = "") -> RollbackResult:
    """Choose `version`, or the one kept as `previous`.

    Raises: ClipftError when there is nothing to go back to.
    """
    from .. import tracking

    if version:
        target = tracking.version_number(tracking.resolve_version(f"models:/{tracking.model_name(spec.domain)}/{version}"))
    else:
        before = tracking.version_by_alias(spec.domain, tracking.PREVIOUS)
        if before is None:
            raise ClipftError(
                f"rollback of {spec.domain}",
                "no version is kept as previous",
                "Name one; MLflow's models page lists them.",
                code="rollback.no_previous",
            )
        target, champion = tracking.version_number(before), tracking.version_number(tracking.champion(spec.domain))
        if target == champion:  # cut between its two writes: finish what was begun
            target = tracking.client().get_registered_model(before.name).tags["clipft.promoting"]
        elif not (target := tracking.not_failed(spec.domain, target, champion)):
            raise ClipftError(
                f"rollback of {spec.domain}",
                f"version {before.version}, kept as previous, failed when it was last live, and so did those before it",
                "Name a version; it is verified before it stays.",
                code="rollback.all_failed",
            )
    say(f"{spec.domain} goes back to version {target}.")
    return RollbackResult(version=target)
