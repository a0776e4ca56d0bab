"""reconcile: what a run that was cut left behind is brought into line: alias, server, and the lease.

Level-triggered: it looks at what is, whoever made it so, and changes nothing where all agrees.
"""

from ..contracts.stages import ReconcileResult
from ..core.console import say
from ..core.errors import BusyError, ClipftError, TransientError
from ..server.client import ServerClient
from ..spec import RunSpec
from . import verify
from .champion import changing, go_back


def run(spec: RunSpec, dag_run: str = "") -> ReconcileResult:
    """A champion that was never verified is verified, or steps down; the server gets the champion; the lease is given back.

    Args:
        dag_run: whose lease it may go on with; where another's is in force, nothing is done.
    Raises: TransientError when MLflow is away.
    """
    from .. import tracking

    domain, done = spec.domain, ""
    if tracking.champion(domain) is None:
        say(f"{domain}: nobody is champion.")
        return ReconcileResult(domain=domain, champion="", done="")
    try:
        with changing(domain, dag_run, wait=False) as lease:
            champion = tracking.champion(domain)
            if champion is not None:
                done = _in_line(spec, tracking.version_number(champion), tracking.deploy_state(champion), dag_run)
            lease.release()
    except BusyError as busy:
        done = f"left alone: {busy}"
    say(f"{domain}: {done or 'registry and server agree.'}")
    with tracking.retryable():
        return ReconcileResult(domain=domain, champion=tracking.version_number(tracking.champion(domain)), done=done)


def _in_line(spec: RunSpec, version: str, state: str, dag_run: str) -> str:
    """Bring the server into line with the champion; returns what was done, "" for nothing."""
    from .. import tracking

    domain = spec.domain
    if state in ("pending", "failed"):
        before = tracking.version_number(tracking.version_by_alias(domain, tracking.PREVIOUS))
        if state == "failed":
            return f"Version {version} had failed and was champion. {go_back(domain, version, before, failed=True)}"
        try:
            verify.run(spec, version, before, dag_run)
            return f"Version {version} was promoted and never verified; it is live and verified now."
        except ClipftError as error:
            return str(error)
        except TransientError as error:
            back = go_back(domain, version, before, failed=False)
            return f"Version {version} was promoted and never verified, and cannot be now ({error}). {back}"
    live = ""
    try:
        live = {model.domain: model.version for model in ServerClient().models()}.get(domain, "")
        if live == version:
            return ""
        ServerClient().load(domain, version)
    except TransientError:
        return ""  # it follows the registry when it is there again
    except ClipftError as error:
        return f"Version {version} is champion and version {live or 'none'} live: {error}"
    return f"Version {live or 'none'} was live; version {version}, the champion, is now."
