"""rollback: the champion steps down for the version before it, or for one that is named."""

from typing import Any

from ..errors import ClipftError
from ..progress import say
from ..spec import RunSpec


def run(spec: RunSpec, version: str = "") -> dict[str, Any]:
    """Make `version`, or the one kept as `previous`, champion.

    Returns: version, previous (the one that stepped down).
    Raises: ClipftError when there is nothing to go back to.
    """
    from .. import tracking

    if version:
        target = tracking.number(tracking.version_of(f"models:/{tracking.model_name(spec.domain)}/{version}"))
    else:
        before = tracking.by_alias(spec.domain, tracking.PREVIOUS)
        if before is None:
            raise ClipftError(
                f"rollback of {spec.domain}", "no version is kept as previous", "Name one; MLflow's models page lists them."
            )
        target = tracking.number(before)
        if target == tracking.number(tracking.champion(spec.domain)):  # cut between its two writes: finish what was begun
            target = tracking.client().get_registered_model(before.name).tags["clipft.promoting"]
    with tracking.neighbour():
        stepped_down = tracking.promote(spec.domain, target)
    say(f"Version {target} of {spec.domain} is champion again; version {stepped_down} stepped down.")
    return {"version": target, "previous": stepped_down or ""}
