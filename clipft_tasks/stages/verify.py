"""verify: the server, asked as any client would ask, gives the answers that were recorded at training."""

from ..contracts.stages import VerifyResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..server.client import ServerClient
from ..spec import RunSpec


def run(spec: RunSpec, version: str, previous: str = "") -> VerifyResult:
    """Send the recorded pairs through the public API.

    Raises: ClipftError when another version answers or the answers differ, after the old champion is back and live.
    """
    from .. import tracking
    from ..model.package import read_recorded_answers
    from ..model.recorded_answers import disagreement

    registered = tracking.resolve_version(f"models:/{tracking.model_name(spec.domain)}/{version}")
    recorded = read_recorded_answers(tracking.fetch_package(registered))
    server = ServerClient()
    similarity, answering = server.similarity(spec.domain, recorded.images, recorded.texts)
    difference = disagreement(recorded, similarity)
    if answering != version or difference > recorded.tolerance:
        reason = f"version {answering} answers" if answering != version else f"its answers differ by {difference:.3f}"
        tracking.restore(spec.domain, previous or None, failed=version)
        if previous:
            server.load(spec.domain, previous)
        raise ClipftError(
            f"version {version} of {spec.domain}",
            f"it did not verify: {reason} (limit {recorded.tolerance})",
            f"Version {previous} is champion and live again." if previous else "There was no earlier champion to go back to.",
            code="deploy.not_verified",
        )
    say(f"Version {version} answers as recorded: {len(recorded.images)} images, largest difference {difference:.5f}.")
    links = {"Server": f"{settings().server_ui or settings().server_url}/docs"}
    return VerifyResult(version=version, disagreement=difference, pairs=len(recorded.images), links=links)
