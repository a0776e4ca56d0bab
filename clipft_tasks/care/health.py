"""Is the installation well? Every check at once, each within its time; what is wrong comes with the way out.

A check returns what it found or raises: ClipftError (wrong, with its own way out), Transient (does not answer). Nothing here
starts, changes or prints a secret; what is written for a test is removed again.
"""

import os
import queue
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import httpx

from ..errors import ClipftError, Transient
from ..settings import settings
from . import databases, restore
from .airflow import Airflow
from .installation import embedded, log_command, readable, start_command

LIMIT = 15.0  # seconds that a check may take
SLOW = ("Device",)  # loads PyTorch, beside which nothing else gets its turn: last, for PATIENCE seconds, and late is no fault
PATIENCE = 6.0
ANSWER = 4.0  # seconds in which a service answers
NEEDED = 3 * 2**30  # bytes of free disk that a run needs
SKEW = 10.0  # seconds that two clocks may differ; tokens are valid from the second they are made
OK, WRONG, LOOK, NONE = "ok", "wrong", "look", "none"
MARKS = {OK: "ok", WRONG: "WRONG", LOOK: "look", NONE: "-"}


@dataclass(frozen=True)
class Found:
    """What a check says.

    Attributes:
        state: ok, wrong, look (works, and a person should know), none (this installation has no such thing).
        said: what it found.
        fix: the way out, when something is wrong.
    """

    thing: str
    address: str
    state: str
    said: str
    fix: str = ""


Said = tuple[str, str] | tuple[str, str, str]  # state, said, fix
Check = tuple[str, str, Callable[[], Said]]


def examine(limit: float | None = None) -> list[Found]:
    """Every check, side by side; takes at most `limit` (LIMIT) seconds and the PATIENCE for the last, whatever does not answer."""
    limit = limit or LIMIT
    checks = _checks()
    found: list[Found | None] = [None] * len(checks)
    done: queue.Queue[int] = queue.Queue()

    def look(i: int) -> None:
        thing, address, check = checks[i]
        try:
            state, said, *fix = check()
            found[i] = Found(thing, address, state, said, *fix)
        except _Unknown as error:
            found[i] = Found(thing, address, NONE, str(error))
        except ClipftError as error:
            found[i] = Found(thing, address, WRONG, f"{error.what}: {error.why}", error.fix)
        except Transient as error:
            found[i] = Found(thing, address, WRONG, str(error), _start(thing))
        except Exception as error:  # a check that breaks is a finding too
            found[i] = Found(thing, address, WRONG, f"the check itself failed: {error!r}", "Look at it by hand.")
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
    return [Found(*map(_shown, (f.thing, f.address, f.state, f.said, f.fix))) for f in answered]


def _late(thing: str, address: str, seconds: float) -> Found:
    said = f"no answer within {seconds:.0f} s"
    return Found(thing, address, LOOK, said) if thing in SLOW else Found(thing, address, WRONG, said, _start(thing))


def well(found: list[Found]) -> bool:
    return all(f.state != WRONG for f in found)


def lines(found: list[Found]) -> list[str]:
    """As a person reads it."""
    width = max(len(f.thing) for f in found)
    out = []
    for f in found:
        out.append(f"{f.thing:{width}}  {MARKS[f.state]:5}  {f.address}{': ' if f.address and f.said else ''}{f.said}")
        if f.fix:
            out.append(f"{'':{width}}         → {f.fix}")
    return out


def as_json(found: list[Found]) -> dict[str, Any]:
    return {"well": well(found), "found": [asdict(f) for f in found]}


def _checks() -> list[Check]:
    s = settings()
    every: list[Check] = [
        ("Airflow", s.airflow_url, _airflow),
        ("DAGs", s.airflow_url, _dags),
        ("Workers", f"queue {s.accelerator_queue}", _workers),
        ("MLflow", s.mlflow_uri or _shown(s.tracking_uri), _mlflow),
        ("DVC remote", s.remote, _remote),
        ("Data sets", _shown(s.datasets), _datasets),
        ("Server", s.server_url, _server),
        ("Models", s.server_url, _models),
        ("Prometheus", s.prometheus_url, _prometheus),
        ("Alertmanager", s.alertmanager_url, _alertmanager),
        ("Grafana", s.grafana_url, _grafana),
    ]
    every += [(f"Tables, {d.name}", d.address, _database(d)) for d in databases.all_of_them()]
    every += [
        ("Disk", str(s.root), _disk),
        ("Clock", s.airflow_url, _clock),
        ("Packages", "", _packages),
        ("Secrets", str(s.root), _modes),
        ("Device", "", _device),
    ]
    return every


def _shown(address: str) -> str:
    """Without what stands between `//` and `@`."""
    return re.sub(r"//[^/@]*@", "//", address.removeprefix("sqlite:///"))


def _start(thing: str) -> str:
    service = {"Airflow": "airflow-api", "DAGs": "airflow-dag-processor", "Models": "server", "Clock": "airflow-api"}
    name = service.get(thing, thing.split(",")[0].lower())
    return f"{start_command()}; if it does not stay up: {log_command('postgres' if name == 'tables' else name)}"


class _Unknown(Exception):
    """Another check says what is wrong."""


@contextmanager
def _of(service: str) -> Iterator[None]:
    """What is asked of a service that does not answer is not known, and is no second fault."""
    try:
        yield
    except Transient:
        raise _Unknown(f"not known while {service} does not answer") from None


def _get(address: str, path: str, **more: Any) -> httpx.Response:
    try:
        answer = httpx.get(address.rstrip("/") + path, timeout=ANSWER, **more)
    except httpx.HTTPError as error:
        why = "no answer" if isinstance(error, httpx.TimeoutException) else str(error) or repr(error)
        raise Transient(f"it does not answer ({why})") from None
    if answer.is_error:
        raise Transient(f"it answered {answer.status_code} to {path}")
    return answer


def _object(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise Transient("something else answers at this address") from None


# Services ------------------------------------------------------------------------------------------------------------


def _airflow() -> Said:
    parts = _object(_get(settings().airflow_url, "/api/v2/monitor/health"))
    wanted = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    ill = [p for p in wanted if (parts.get(p) or {}).get("status") != "healthy"]
    if ill:
        names = ", ".join(p.replace("_", "-") for p in ill)
        return WRONG, f"{names} not healthy", f"{start_command()}; then: {log_command('airflow-' + ill[0].replace('_', '-'))}"
    there = _object(_get(settings().airflow_url, "/api/v2/version"))["version"]
    return _same("apache-airflow", there, "scheduler, dag-processor and triggerer are healthy")


def _dags() -> Said:
    with _of("Airflow"):
        _get(settings().airflow_url, "/api/v2/version")
        airflow = Airflow(ANSWER)
    if not airflow.logged_in:
        return (
            LOOK,
            "import errors are not looked at without a password",
            "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD.",
        )
    errors = airflow.get("/api/v2/importErrors?limit=100")["import_errors"]
    if errors:
        last = errors[0]["stack_trace"].strip().splitlines()[-1]
        return WRONG, f"{errors[0]['filename']} cannot be imported: {last}", f"Correct it; {len(errors)} file(s) in all."
    names = [d["dag_id"] for d in airflow.get("/api/v2/dags?limit=100&tags=clipft")["dags"]]
    if not names:
        return WRONG, "none of clipft's is there", f"Is the DAG folder this project's? {log_command('airflow-dag-processor')}"
    return OK, f"{len(names)} imported, {airflow.running()} runs under way"


def _workers() -> Said:
    executor = settings().accelerator_executor or ""
    if "Edge" not in executor:
        return NONE, f"training runs in {executor or 'Airflow’s own executor'} here"
    with _of("Airflow"):
        airflow = Airflow(ANSWER)
    if not airflow.logged_in:
        return LOOK, "not looked at without a password", "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD."
    wanted = settings().accelerator_queue
    workers = airflow.get("/edge_worker/ui/worker")["workers"]
    mine = [w for w in workers if not w.get("queues") or wanted in w["queues"]]
    gone = ("offline", "unknown", "offline maintenance")
    online = [w["worker_name"] for w in mine if w["state"] not in gone and "maintenance" not in w["state"]]
    if online:
        away = sorted(w["worker_name"] for w in mine if w["worker_name"] not in online)
        return OK, f"{', '.join(sorted(online))} online" + (f"; not: {', '.join(away)}" if away else "")
    known = ", ".join(f"{w['worker_name']} is {w['state']}" for w in mine) or "none ever joined"
    return (
        WRONG,
        f"no worker is online ({known}); training waits",
        "On that machine: clipft worker status; a new one: clipft worker join",
    )


def _mlflow() -> Said:
    address = settings().mlflow_uri
    if not address:
        return (OK, "spoken with directly, without a server") if _has_tables("mlflow") else (NONE, "nothing was tracked yet")
    login = _mlflow_login()
    _get(address, "/health", **login)
    there = _get(address, "/version", **login).text.strip()
    models = _object(_get(address, "/api/2.0/mlflow/registered-models/search?max_results=100", **login)).get(
        "registered_models", []
    )
    return _same("mlflow", there, f"{len(models)} registered models")


def _mlflow_login() -> dict[str, Any]:
    """As MLflow's own client: user and password, or a token, from its environment."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {"headers": {"Authorization": f"Bearer {token}"}} if token else {}


def _champions() -> dict[str, str]:
    """The champion's number by domain, of clipft's registered models."""
    address = settings().mlflow_uri
    if not address:
        if not _has_tables("mlflow"):
            return {}
        from .. import tracking

        return tracking.champions()
    query = "/api/2.0/mlflow/registered-models/search?max_results=100"
    found = {}
    for model in _object(_get(address, query, **_mlflow_login())).get("registered_models", []):
        for alias in model.get("aliases", []):
            if alias["alias"] == "champion" and model["name"].startswith("clipft-"):
                found[model["name"].removeprefix("clipft-")] = str(alias["version"])
    return found


def _has_tables(name: str) -> bool:
    return any(d.name == name and d.tables() for d in databases.all_of_them())


def _remote() -> Said:
    remote = settings().remote
    if "://" in remote:
        return _store(remote)
    folder = Path(remote)
    if not folder.exists():
        if _has_versions():
            return (
                WRONG,
                "it is gone, and there are data-set versions",
                "clipft restore BACKUP into a new home, or mount that disk.",
            )
        return NONE, "made with the first data set"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            pass
        next(folder.iterdir(), None)
    except OSError as error:
        return (
            WRONG,
            f"it cannot be written: {error.strerror}",
            f"Give it to the user that this runs as: chown -R {os.getuid()} {folder}",
        )
    return OK, "readable and writable"


def _store(remote: str) -> Said:
    """An object store or web server, through DVC itself, with the credentials that DVC would use."""
    from dvc.repo import Repo

    place = settings().working_copy
    if not (place / ".dvc" / "config").exists():
        return NONE, "looked at once there is a data set"
    try:
        with Repo(str(place)) as repo:
            odb = repo.cloud.get_remote_odb("store")
            probe = odb.fs.join(odb.path, ".doctor")
            if remote.startswith(("http:", "https:")) or getattr(settings(), "remote_read_only", False):
                odb.fs.exists(probe)
                return OK, "readable"
            odb.fs.pipe_file(probe, b"x")
            odb.fs.cat_file(probe)
            odb.fs.remove(probe)
    except Exception as error:  # whatever the store's own library raises
        fix = "Are CLIPFT_DVC_REMOTE, AWS_ENDPOINT_URL and its keys right, and the store up?"
        return WRONG, f"it cannot be read and written: {_shown(str(error).strip() or repr(error))[:200]}", fix
    return OK, "readable and writable"


def _has_versions() -> bool:
    return bool(_tags())


def _tags() -> list[str]:
    """Every version of every domain, oldest first."""
    place = settings().working_copy
    if not (place / ".git").exists():
        return []
    command = ["git", "-C", str(place), "for-each-ref", "--sort=creatordate", "--format=%(refname:strip=2)", "refs/tags/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=False)
    if done.returncode:
        raise ClipftError(
            f"repository {place}", (done.stderr.strip() or "git cannot read it").rstrip("."), "clipft restore BACKUP"
        )
    return done.stdout.split()


def _datasets() -> Said:
    if not (settings().working_copy / ".git").exists():
        return NONE, "made with the first data set"
    tags = _tags()
    return OK, f"{len(tags)} versions" + (f", the newest {tags[-1]}" if tags else "")


def _server() -> Said:
    _get(settings().server_url, "/healthz")
    live = _object(_get(settings().server_url, "/v1/models"))
    shown = ", ".join(f"{m['domain']} version {m['version']}" for m in live)
    return OK, f"live: {shown}" if shown else "nothing is live yet"


def _models() -> Said:
    """Is live what should be, and is drift being measured?"""
    with _of("the server"):
        live = {m["domain"]: str(m["version"]) for m in _object(_get(settings().server_url, "/v1/models"))}
    with _of("MLflow"):
        champions = _champions()
    wrong = {d: v for d, v in champions.items() if live.get(d) != v}
    if wrong:
        domain, wanted = next(iter(sorted(wrong.items())))
        said = f"champion of {domain} is version {wanted}, live is {live.get(domain, 'none')}"
        return WRONG, said, f"clipft deploy with the same spec, or a look at why it was refused: {log_command('server')}"
    figures = _get(settings().server_url, "/metrics").text
    ratios = re.findall(r"^clipft_drift_ratio\{([^}]*)\} (\S+)", figures, re.M)
    over = sorted({m[1] for labels, value in ratios if float(value) > 1 and (m := re.search(r'domain="([^"]*)"', labels))})
    if over:
        return LOOK, f"{', '.join(over)} drifts beyond its limit", f"clipft drift {over[0]}"
    if not champions:
        return NONE, "no champion yet"
    return OK, "every champion is live" + ("; drift is measured" if ratios else "; too little traffic to measure drift")


def _prometheus() -> Said:
    address = settings().prometheus_url
    if not address:
        return NONE, "drift is read from the server’s own figures"
    targets = _object(_get(address, "/api/v1/targets?state=active"))["data"]["activeTargets"]
    down = [t for t in targets if t["health"] == "down"]
    if down:
        first = down[0]
        return (
            WRONG,
            f"target {first['labels']['job']} at {_shown(first['scrapeUrl'])} is down: {first['lastError']}",
            _start("Server"),
        )
    if not targets:
        return WRONG, "it scrapes nothing", "Is its configuration this project's?"
    firing = [a for a in _object(_get(address, "/api/v1/alerts"))["data"]["alerts"] if a["state"] == "firing"]
    if firing:
        names = sorted({a["labels"]["alertname"] for a in firing})
        return LOOK, f"{len(targets)} targets are up; firing: {', '.join(names)}"
    return OK, f"{len(targets)} targets are up, no alert"


def _alertmanager() -> Said:
    if not settings().alertmanager_url:
        return NONE, ""
    _get(settings().alertmanager_url, "/-/ready")
    return OK, "ready"


def _grafana() -> Said:
    if not settings().grafana_url:
        return NONE, ""
    state = _object(_get(settings().grafana_url, "/api/health")).get("database")
    return (OK, "ready") if state == "ok" else (WRONG, f"its database is {state}", _start("Grafana"))


# This machine --------------------------------------------------------------------------------------------------------


def _database(database: databases.Database) -> Callable[[], Said]:
    def check() -> Said:
        restore.refuse_half_restored()
        now = database.revision()
        if not now:
            return NONE, "no tables yet"
        known, newest = databases.known_revisions(database.name)
        if known and now not in known:
            return WRONG, f"a newer release made them ({now})", "Install that release, or restore the backup made before it."
        if known and now not in newest:
            return WRONG, f"they are of an older release ({now})", "make up" if embedded() else "clipft upgrade"
        return OK, f"{readable(database.size())}"

    return check


def _disk() -> Said:
    root = settings().root
    there = next(p for p in (root, *root.parents) if p.exists())
    use = shutil.disk_usage(there)
    said = f"{readable(use.free)} free of {readable(use.total)}"
    if use.free < NEEDED:
        return WRONG, said, "clipft gc shows what may go, clipft gc --yes removes it"
    if use.free < 0.1 * use.total:
        return LOOK, said, "clipft gc shows what may go"
    return OK, said


def _clock() -> Said:
    """Beside the clock of the machine that Airflow's API runs on."""
    with _of("Airflow"):
        answer = _get(settings().airflow_url, "/api/v2/version")
    told = answer.headers.get("date")
    if not told:
        return NONE, "Airflow does not tell the time"
    skew = time.time() - parsedate_to_datetime(told).timestamp()
    if abs(skew) > SKEW:
        return (
            WRONG,
            f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} Airflow’s",
            "Turn on time synchronisation (NTP).",
        )
    return OK, "as Airflow’s, within a second or two"


def _packages() -> Said:
    wanted, there = _locked(), _installed()
    other = [
        f"{name} {there[name]} instead of {locked}"
        for name, locked in sorted(wanted.items())
        if name in there and there[name].split("+")[0] != locked  # what is not there is of another role
    ]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return WRONG, ", ".join(other[:3]) + more, "make setup" if embedded() else "Build the image anew."
    return OK, f"as {'the lock' if len(wanted) > 50 else 'clipft'} says"


def _installed() -> dict[str, str]:
    """Versions by package, as the folders' names tell: opening three hundred files takes seconds on a busy machine."""
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for place in reversed(sys.path):
        for info in Path(place).glob("*.dist-info") if place else ():
            name, _, number = info.name.removesuffix(".dist-info").rpartition("-")
            found[canonicalize_name(name)] = number
    return found


def _locked() -> dict[str, str]:
    """Versions by package: of the lock beside this code, else those that the installed clipft pins itself."""
    lock = Path(__file__).resolve().parents[2] / "requirements.lock"
    if lock.exists():
        entries = lock.read_text().splitlines()
    else:
        try:
            entries = requires("clipft") or []
        except PackageNotFoundError:
            entries = []
    found: dict[str, str] = {}
    for entry in entries:
        name, _, marker = entry.partition(";")
        match = re.fullmatch(r"\s*([\w.-]+)(?:\[[^]]*\])?==([\w.+!]+)\s*", name)
        if match and _applies(marker):
            found[match[1]] = match[2].split("+")[0]
    return found


def _applies(marker: str) -> bool:
    from packaging.markers import InvalidMarker, Marker

    if not marker.strip() or "extra" in marker:
        return True
    try:
        return Marker(marker).evaluate()
    except InvalidMarker:
        return False


def _modes() -> Said:
    root = settings().root
    secret = [root / n for n in ("secrets.json", "stack.env", "alert-token", "airflow/passwords.json", "worker.env")]
    there = [p for p in secret if p.exists()]
    loose = [p for p in there if stat.S_IMODE(p.stat().st_mode) & 0o077]
    if loose:
        return WRONG, f"{', '.join(p.name for p in loose)} can be read by others", f"chmod 600 {' '.join(map(str, loose))}"
    return (OK, f"{len(there)} files, readable by their owner only") if there else (NONE, "none are kept in files here")


def _device() -> Said:
    if settings().accelerator_executor:
        return NONE, f"training and evaluation go to queue {settings().accelerator_queue}"
    from importlib.util import find_spec

    if not find_spec("torch"):
        return NONE, "PyTorch is not installed here"
    from ..train import hardware

    machine = hardware.probe()
    return OK, f"{machine.device}, {machine.name}, {machine.cores} cores, {readable(machine.memory)} for training"


def _same(package: str, there: str, said: str) -> Said:
    """Is the service's release the one that this program was made for?"""
    try:
        here = version(package)
    except PackageNotFoundError:
        return OK, f"{there}; {said}"
    if here != there:
        return WRONG, f"{there} answers and {here} is installed here", f"Stop and start it with this release: {start_command()}"
    return OK, f"{there}; {said}"
