"""verify: the server, asked as any client would ask, gives the answers that were recorded at training."""

from ..contracts.recorded_answers import RecordedAnswers
from ..contracts.stages import VerifyResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec
from .champion import changing, go_back, require_champion


def run(spec: RunSpec, version: str, previous: str = "", dag_run: str = "") -> VerifyResult:
    """Send the recorded pairs through the public API, and give the domain's lease back.

    Raises: ClipftError when the answers differ, after the old champion is back and live; or when another version was promoted
        since, which stays.
    """
    from .. import tracking
    from ..model.package import read_recorded_answers
    from ..model.recorded_answers import disagreement

    with changing(spec.domain, dag_run) as lease:
        require_champion(spec.domain, version, previous)
        registered = tracking.resolve_version(f"models:/{tracking.model_name(spec.domain)}/{version}")
        recorded = read_recorded_answers(tracking.fetch_package(registered))
        server = ServerClient()
        similarity, answering = _ask(server, spec.domain, recorded)
        if answering != version:  # the server is not where the registry is: bring it there
            say(f"Version {answering or 'none'} answers: the server is told again.")
            server.load(spec.domain, version)
            similarity, answering = _ask(server, spec.domain, recorded)
        difference = disagreement(recorded, similarity) if answering == version else 0.0
        wrong = f"version {answering or 'none'} answers" if answering != version else ""
        if difference > recorded.tolerance:
            wrong = f"its answers differ by {difference:.3f} (limit {recorded.tolerance})"
        if wrong:
            back = go_back(spec.domain, version, previous, failed=True)
            raise ClipftError(
                f"version {version} of {spec.domain}", f"it did not verify: {wrong}", back, code="deploy.not_verified"
            )
        with tracking.retryable():
            tracking.confirm(spec.domain, version)
        lease.release()
    say(f"Version {version} answers as recorded: {len(recorded.images)} images, largest difference {difference:.5f}.")
    links = {"Server": f"{settings().server_ui or settings().server_url}/"}
    return VerifyResult(version=version, disagreement=difference, pairs=len(recorded.images), links=links)


def _ask(server: ServerClient, domain: str, recorded: RecordedAnswers) -> tuple[list[list[float]], str]:
    """What it answers to the recorded questions, and which version does; "" where nothing of the domain is live."""
    try:
        return server.similarity(domain, recorded.images, recorded.texts)
    except ServerRefusalError as error:
        if error.status != 404:
            raise
        return [], ""
