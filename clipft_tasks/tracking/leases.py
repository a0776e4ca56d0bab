"""Leases: who may change a thing that machines share (a domain's champion), until they are done or their time is over.

MLflow's database is what all machines have in common, and of all that it keeps only two things are written once: a run's parameter,
and an experiment's name with the tags that it is made with. So a lease is a chain of claims in a run of the experiment
`clipft-leases`: parameters `1`, `2`, … each a holder and until when. Of two who claim the same number one is refused. The tag of
the same number says until when the lease was renewed ("0": given back). Clocks of machines are taken to agree within a minute.
"""

import getpass
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ..contracts.base import Record
from ..core.console import say
from ..core.errors import BusyError, ClipftError, TransientError
from ..core.settings import settings
from .connection import client, is_unreachable, retryable

EXPERIMENT, ANCHOR = "clipft-leases", "clipft-leases-root"
ROOT = "clipft.run"  # tag of ANCHOR: the run that names the others
NEXT = "next"  # parameter of a run that is full: the run that goes on
MOST = 200  # claims in one run
SECONDS = 600.0  # that a lease lasts without being renewed: longer than a task waits between two tries
MOMENT = 60.0  # likewise, of what is done in one go
AGREE = 60.0  # seconds that clocks may differ by


class Claim(Record):
    """Who holds a lease, and until when (seconds since 1970)."""

    holder: str
    until: float

    @property
    def holds(self) -> bool:
        """Whether its time is not over. One that ends later than any lease lasts was claimed by a clock that was set back since."""
        return time.time() < self.until <= time.time() + SECONDS + AGREE


@dataclass(frozen=True)
class Lease:
    """A lease that was taken. Attributes: resource: what it is about. run_id, number: where its claim stands."""

    resource: str
    holder: str
    run_id: str
    number: int
    seconds: float

    def renew(self) -> None:
        """Hold it for another while. Raises: TransientError when MLflow is away."""
        with retryable():
            client().set_tag(self.run_id, str(self.number), str(time.time() + self.seconds))

    def release(self) -> None:
        """Give it back. Where MLflow is away it ends by itself."""
        with suppress(MlflowException):
            client().set_tag(self.run_id, str(self.number), "0")

    def check(self) -> None:
        """Raises: BusyError when somebody else took it over, because this process stood still for too long."""
        now = current(self.resource)
        if now and now.holder != self.holder:
            raise BusyError(self.resource, now.holder, now.until)


def whoever() -> str:
    """The holder where no run of Airflow asks: this person on this machine."""
    return f"{getpass.getuser()} on {socket.gethostname()}"


def current(resource: str) -> Claim | None:
    """Who holds a lease now, if anybody does. Raises: TransientError when MLflow is away."""
    with retryable():
        run = _run_of(resource)
        number = _last(run)
        claim = _claim(run, number) if number else None
    return claim if claim and claim.holds else None


def acquire(resource: str, holder: str, seconds: float = SECONDS) -> Lease:
    """Take a lease, or go on with the one that this holder has.

    Raises: BusyError while another holds it; TransientError when MLflow is away.
    """
    with retryable():
        while True:
            run = _run_of(resource)
            number, run_id = _last(run), run.info.run_id
            if number and (claim := _claim(run, number)).holds:
                if claim.holder != holder:
                    raise BusyError(resource, claim.holder, claim.until)
                lease = Lease(resource, holder, run_id, number, seconds)
                lease.renew()
                return lease
            claim = Claim(holder=holder, until=time.time() + seconds)
            if not _write_once(run_id, str(number + 1), json.dumps(claim.to_json())):
                continue  # somebody was first: see who
            if number + 1 >= MOST:
                fresh = _new_run(run.info.experiment_id, resource)
                _write_once(fresh, "1", json.dumps(claim.to_json()))
                if _write_once(run_id, NEXT, fresh):
                    return Lease(resource, holder, fresh, 1, seconds)
            return Lease(resource, holder, run_id, number + 1, seconds)


@contextmanager
def held(resource: str, holder: str, seconds: float = SECONDS, wait: float = 0.0) -> Iterator[Lease]:
    """Hold a lease meanwhile. It is *not* given back at the end: what comes next, perhaps in another process, may need it.

    Args:
        wait: seconds to wait for another holder. Nobody holds longer than its time, so twice that is enough.
    Raises: BusyError; TransientError when MLflow is away.
    """
    until, told, lease = time.monotonic() + wait, False, None
    while lease is None:
        try:
            lease = acquire(resource, holder, seconds)
        except BusyError as busy:
            if time.monotonic() > until:
                raise
            if not told and seconds > MOMENT:
                told = True
                say(f"Waiting: {busy}")
            time.sleep(min(2.0, 0.05 if seconds <= MOMENT else 2.0))
    ended = threading.Event()

    def renew(lease: Lease) -> None:
        while not ended.wait(seconds / 4):
            with suppress(MlflowException, TransientError):  # it may be away for a while
                lease.renew()

    thread = threading.Thread(target=renew, args=[lease], daemon=True, name=f"lease {resource}")
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()


@contextmanager
def exclusively(resource: str) -> Iterator[None]:
    """Do something in one go, alone among all machines; a process that is killed in it is waited for a minute.

    Raises: BusyError when others are at it for that long; TransientError when MLflow is away.
    """
    with held(resource, f"{whoever()} {uuid.uuid4().hex[:8]}", MOMENT, wait=2 * MOMENT) as lease:
        try:
            yield
        finally:
            lease.release()


def _last(run: Run) -> int:
    return max((int(key) for key in run.data.params if key.isdigit()), default=0)


def _claim(run: Run, number: int) -> Claim:
    claim = Claim.model_validate_json(run.data.params[str(number)])
    return claim.model_copy(update={"until": float(run.data.tags.get(str(number), claim.until))})


def _run_of(resource: str) -> Run:
    """The run that holds the newest claims of a resource."""
    store, root = client(), _root()
    run_id = root.data.params.get(resource)
    if not run_id:
        fresh = _new_run(root.info.experiment_id, resource)
        _write_once(root.info.run_id, resource, fresh)
        run_id = store.get_run(root.info.run_id).data.params[resource]
    run = store.get_run(run_id)
    while NEXT in run.data.params:
        run = store.get_run(run.data.params[NEXT])
    return run


def _root() -> Run:
    """The run that names each resource's; which one it is, says the tag that the experiment ANCHOR was made with, once."""
    store = client()
    anchor = store.get_experiment_by_name(ANCHOR)
    if anchor is None:
        made = _new_run(_experiment(EXPERIMENT, {}), "all")
        _experiment(
            ANCHOR, {ROOT: made, "mlflow.note.content": "Says which run of clipft-leases names the others. Not to be deleted."}
        )
        anchor = store.get_experiment_by_name(ANCHOR)
    root = store.get_run(anchor.tags[ROOT]) if anchor else None
    if root is None or root.info.lifecycle_stage == "deleted":
        raise ClipftError(
            f"MLflow's experiments {EXPERIMENT} and {ANCHOR}",
            "they, or the run `all`, were deleted, and no champion can be changed without them",
            "Restore them in MLflow (filter: deleted).",
            code="tracking.leases_deleted",
        )
    return root


def _experiment(name: str, tags: dict[str, str]) -> str:
    """Make an experiment with its tags, unless it is there already; returns its id."""
    store, where = client(), None
    if settings().tracking_uri.startswith("sqlite:"):
        where = settings().folder("mlflow", "artifacts", name).as_uri()
    try:
        return str(store.create_experiment(name, artifact_location=where, tags=tags))
    except MlflowException as error:
        found = None if is_unreachable(error) else store.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _new_run(experiment_id: str, name: str) -> str:
    store = client()
    run_id = str(store.create_run(experiment_id, run_name=name).info.run_id)
    store.update_run(run_id, status="FINISHED")  # set_terminated prints a line
    return run_id


def _write_once(run_id: str, key: str, value: str) -> bool:
    """Write a parameter that nobody wrote before; False when somebody did."""
    try:
        client().log_param(run_id, key, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True
