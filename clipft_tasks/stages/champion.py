"""What the stages share that change a domain's champion: the lease under which they do, and the way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..server.client import ServerClient, ServerRefusalError

if TYPE_CHECKING:
    from ..tracking.leases import Lease


@contextmanager
def changing(domain: str, dag_run: str, what: str = "champion", wait: bool = True) -> "Iterator[Lease]":
    """Hold a domain's lease. It is kept for the stage that follows, or the retry, and given back when the work is refused.

    Args:
        dag_run: who holds it; "" for a person at a command line.
        wait: whether a person waits where others hold it. A run of Airflow does not: its task is tried again.
    Raises: BusyError while another run holds it.
    """
    from .. import tracking
    from ..tracking.leases import SECONDS

    seconds = 2 * SECONDS if wait and not dag_run else 0
    with tracking.held(f"{what}.{domain}", dag_run or tracking.whoever(), wait=seconds) as lease:
        try:
            yield lease
        except ClipftError:
            lease.release()
            raise


def require_champion(domain: str, version: str, previous: str) -> None:
    """The version must still be champion: others may have acted since a lease ended by itself.

    Raises: ClipftError when it is not. Nothing is undone where a newer one was promoted; one that had failed before is made sure
        to be gone from the server too.
    """
    from .. import tracking

    with tracking.retryable():
        now = tracking.version_number(tracking.champion(domain))
        if now == version:
            return
        state = tracking.deploy_state(tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{version}"))
    if state == "failed":
        back = go_back(domain, version, previous, failed=True)
        raise ClipftError(f"version {version} of {domain}", "it failed before", back, code="champion.failed")
    raise ClipftError(
        f"version {version} of {domain}",
        f"version {now} was promoted since" if now else "its promotion was undone since",
        "Nothing was changed. To have it back, run clipft_rollback and name it." if now else "Start the same form again.",
        code="champion.superseded",
    )


def go_back(domain: str, undone: str, previous: str, failed: bool) -> str:
    """Undo a promotion: alias first, then the server; a version that it refuses has failed as well, and the one before comes.

    Returns: in a sentence, what is champion now.
    """
    from .. import tracking

    while True:
        with tracking.retryable():
            target = tracking.restore(domain, undone, previous, failed)
        if not target:
            return "There was no earlier champion to go back to."
        try:
            ServerClient().load(domain, target)
            return f"Version {target} is champion and live again."
        except ServerRefusalError as error:
            if (
                error.status != 409 or error.code == "server.not_champion"
            ):  # about this version; anything else (a wrong token, say) is not its fault
                return f"Version {target} is champion again."
            say(f"The server refused version {target} too: {error.why}.")
            undone, previous, failed = target, "", True
        except TransientError:  # it follows the registry when it is there again
            return f"Version {target} is champion again."
