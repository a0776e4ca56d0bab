"""deploy: the server loads the version, checks it against its recorded answers, and swaps; so does each of its replicas."""

from ..contracts.stages import DeployResult
from ..core.console import say
from ..core.settings import settings
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec


def run(spec: RunSpec, version: str, previous: str = "") -> DeployResult:
    """Tell the server and wait until this version is live.

    Raises: Transient when the server is away, or a replica does not follow; ClipftError when it refuses the version, after the old champion is back.
    """
    from .. import tracking

    server = ServerClient()
    try:
        loaded = server.load(spec.domain, version)
    except ServerRefusalError as error:
        # 409 is about this version; anything else (a wrong token, say) is not its fault.
        tracking.restore(spec.domain, previous or None, failed=version if error.status == 409 else "")
        say(
            f"The server refused version {version}; "
            + (f"version {previous} is champion again." if previous else "nobody is champion.")
        )
        raise
    say(f"Version {loaded.version} of {spec.domain} is live after {loaded.load_seconds:.1f} s.")
    replicas = server.wait_for_version(spec.domain, version)
    links = {"Server": f"{settings().server_ui or settings().server_url}/docs"}
    return DeployResult(
        version=version, replaced=loaded.replaced or "", load_seconds=loaded.load_seconds, replicas=replicas, links=links
    )
