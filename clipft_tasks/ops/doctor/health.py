"""Is the installation well? Every check at once, each within its time; what is wrong comes with the way out.

A check returns what it found or raises: ClipftError (wrong, with its own way out), TransientError (does not answer). Nothing here
starts, changes or prints a secret; what is written for a test is removed again.
"""

import queue
import threading
import time
from dataclasses import asdict

from ...core.errors import ClipftError, TransientError
from ...core.settings import settings
from .. import databases
from . import machine, services
from .findings import LOOK, NONE, OK, WRONG, Check, DependencyDownError, Finding, start_hint, without_credentials

LIMIT = 15.0  # seconds that a check may take
SLOW = ("Device",)  # loads PyTorch, beside which nothing else gets its turn: last, for PATIENCE seconds, and late is no fault
PATIENCE = 6.0
MARKS = {OK: "ok", WRONG: "WRONG", LOOK: "look", NONE: "-"}


def run_checks(limit: float | None = None) -> list[Finding]:
    """Every check, side by side; takes at most `limit` (LIMIT) seconds and the PATIENCE for the last, whatever does not answer."""
    limit = limit or LIMIT
    checks = _checks()
    found: list[Finding | None] = [None] * len(checks)
    done: queue.Queue[int] = queue.Queue()

    def look(i: int) -> None:
        thing, address, check = checks[i]
        try:
            state, said, *fix = check()
            found[i] = Finding(thing, address, state, said, *fix)
        except DependencyDownError as error:
            found[i] = Finding(thing, address, NONE, str(error))
        except ClipftError as error:
            found[i] = Finding(thing, address, WRONG, f"{error.what}: {error.why}", error.fix)
        except TransientError as error:
            found[i] = Finding(thing, address, WRONG, str(error), start_hint(thing))
        except Exception as error:  # a check that breaks is a finding too
            found[i] = Finding(thing, address, WRONG, f"the check itself failed: {error!r}", "Look at it by hand.")
        done.put(i)

    def wait_for(some: list[int], seconds: float) -> None:
        for i in some:  # daemons: one that hangs does not keep this process
            threading.Thread(target=look, args=(i,), daemon=True, name=checks[i][0]).start()
        until, waiting = time.monotonic() + seconds, set(some)
        while waiting:
            try:
                waiting.discard(done.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                return

    began = time.monotonic()
    slow = [i for i, check in enumerate(checks) if check[0] in SLOW]
    wait_for([i for i in range(len(checks)) if i not in slow], limit)
    wait_for(slow, min(limit, PATIENCE))
    answered = [f or _late(*checks[i][:2], time.monotonic() - began) for i, f in enumerate(list(found))]
    return [Finding(*map(without_credentials, (f.thing, f.address, f.state, f.said, f.fix))) for f in answered]


def _late(thing: str, address: str, seconds: float) -> Finding:
    said = f"no answer within {seconds:.0f} s"
    return Finding(thing, address, LOOK, said) if thing in SLOW else Finding(thing, address, WRONG, said, start_hint(thing))


def is_healthy(found: list[Finding]) -> bool:
    return all(f.state != WRONG for f in found)


def as_lines(found: list[Finding]) -> list[str]:
    """As a person reads it."""
    width = max(len(f.thing) for f in found)
    out = []
    for f in found:
        out.append(f"{f.thing:{width}}  {MARKS[f.state]:5}  {f.address}{': ' if f.address and f.said else ''}{f.said}")
        if f.fix:
            out.append(f"{'':{width}}         → {f.fix}")
    return out


def as_json(found: list[Finding]) -> dict[str, object]:
    return {"well": is_healthy(found), "found": [asdict(f) for f in found]}


def _checks() -> list[Check]:
    s = settings()
    every: list[Check] = [
        ("Airflow", s.airflow_url, services.airflow),
        ("DAGs", s.airflow_url, services.dags),
        ("Workers", f"queue {s.accelerator_queue}", services.workers),
        ("MLflow", s.mlflow_uri or without_credentials(s.tracking_uri), services.mlflow),
        ("DVC remote", s.remote, services.remote),
        ("Data sets", without_credentials(s.datasets), services.datasets),
        ("Server", s.server_url, services.server),
        ("Models", s.server_url, services.models),
        ("Prometheus", s.prometheus_url, services.prometheus),
        ("Alertmanager", s.alertmanager_url, services.alertmanager),
        ("Grafana", s.grafana_url, services.grafana),
    ]
    every += [(f"Tables, {d.name}", d.address, machine.database(d)) for d in databases.all_databases()]
    every += [
        ("Disk", str(s.root), machine.disk),
        ("Erasures", str(s.root), machine.erasures),
        ("Clock", s.airflow_url, machine.clock),
        ("Packages", "", machine.packages),
        ("Secrets", str(s.root), machine.modes),
        ("Device", "", machine.device),
    ]
    return every
