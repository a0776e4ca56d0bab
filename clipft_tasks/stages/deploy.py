"""deploy: the server loads the version, checks it against its recorded answers, and swaps; so does each of its replicas."""

from ..contracts.stages import DeployResult
from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..core.settings import settings
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec
from .champion import changing, go_back, require_champion

INDEXED = 50_000  # rows of an index that is made anew before a version goes live


def run(spec: RunSpec, version: str, previous: str = "", dag_run: str = "", last_try: bool = False) -> DeployResult:
    """Tell the server and wait until this version is live.

    Raises: TransientError when the server is away, or a replica does not follow; ClipftError when it refuses the version, or on the last
        try, after the old champion is back; likewise when another version was promoted since.
    """
    _index_before(spec.domain, version)
    with changing(spec.domain, dag_run):
        require_champion(spec.domain, version, previous)
        server = ServerClient()
        try:
            loaded = server.load(spec.domain, version)
            replicas = server.wait_for_version(spec.domain, version)
        except ServerRefusalError as error:
            # 409 is about this version; anything else (a wrong token, another registry) is not its fault.
            failed = error.status == 409 and error.code != "server.not_champion"
            back = go_back(spec.domain, version, previous, failed)
            raise ClipftError(f"version {version} of {spec.domain}", error.why, back, code=error.code) from None
        except TransientError as error:
            if not last_try:
                raise
            back = go_back(spec.domain, version, previous, failed=False)
            raise ClipftError(f"version {version} of {spec.domain}", str(error).rstrip("."), back, code="deploy.away") from None
    say(f"Version {loaded.version} of {spec.domain} is live after {loaded.load_seconds:.1f} s.")
    links = {"Server": f"{settings().server_ui or settings().server_url}/"}
    return DeployResult(
        version=version, replaced=loaded.replaced or "", load_seconds=loaded.load_seconds, replicas=replicas, links=links
    )


def _index_before(domain: str, version: str) -> None:
    """Make the search index of a version before it goes live, where the domain has one: so search never waits for it. What goes wrong
    with it is said, and keeps no version back."""
    from .. import search

    try:
        known = search.cards(domain)
        if known and known[0].rows > INDEXED:
            say(f"The index of {domain} has {known[0].rows:,} rows: run `clipft index refresh {domain} --version {version}`.")
        elif known:
            search.refresh(domain, version)
    except Exception as error:
        say(f"The index of {domain} was not made for version {version}, so its search rests: {error}")
