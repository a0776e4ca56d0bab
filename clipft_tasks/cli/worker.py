"""`clipft worker …`: a machine that takes a team's training tasks, and the operator's side of it."""

import signal
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import click

from ..core.errors import ClipftError, TransientError
from ..core.settings import settings
from ..spec import DeviceName

if TYPE_CHECKING:
    from ..worker.checks import CheckResult


@click.group("worker")
def worker() -> None:
    """Join a team's control plane with this machine and run its training tasks; invite and revoke such machines."""


_ca = click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="certificate authority to trust, a PEM file",
)
_code = click.option(
    "--code", envvar="CLIPFT_JOIN_CODE", help="from `clipft worker invite`; may be used once  [env: CLIPFT_JOIN_CODE]"
)


@worker.command("join")
@click.argument("url")
@_code
@_ca
@click.option("--queue", type=click.Choice(get_args(DeviceName)), help="whose tasks to take [default: this machine's device]")
def join(url: str, code: str | None, ca: str | None, queue: str | None) -> None:
    """Make this machine a worker of the control plane whose Airflow is at URL.

    Checks clock, versions, code, disk and device first, and uses the code only when they are right; then takes the secret and
    looks whether Airflow, MLflow and the data can be reached.
    """
    _join(url, code, ca or "", queue)
    click.echo("Start it:           clipft worker run\nStart it at login:  clipft worker install")


def _join(url: str, code: str | None, ca: str, queue: str | None) -> None:
    from ..devices.hardware import detect
    from ..worker import checks, membership, runner

    if not code:
        raise ClipftError(
            "joining",
            "there is no code",
            "An operator gets one on the control plane: clipft worker invite NAME",
            code="worker.no_invitation",
        )
    if runner.running():
        raise ClipftError("joining", "a worker runs here", "Stop it first: clipft worker drain", code="worker.already_running")
    theirs = membership.look(url, code, ca)
    click.echo(f"Joining {url} as {theirs.about.name}")
    _report([*checks.check_compatibility(theirs), *checks.check_machine()], "Nothing was changed, and the code still holds.")
    if url.startswith("http://") and not any(h in url for h in ("//127.", "//localhost", "//[::1]")):
        click.echo(
            click.style("  ! http: the secret crosses the network unencrypted; use https where others can listen", fg="yellow")
        )
    device = detect()
    joined = membership.join(url, code, f"{device.device}: {device.name}", ca)
    member = membership.Membership(
        url.rstrip("/"), joined.name, joined.secret, joined.addresses.model_dump(), queue or device.device, ca
    )
    member.keep()
    click.echo(f"  Kept in {membership.membership_path()}, readable by you alone")
    _report(checks.check_connections(member), "This machine has joined; see again with `clipft worker check`.")


@worker.command("check")
def check() -> None:
    """Look again at everything that `join` looked at."""
    from ..worker import checks, membership

    member = membership.Membership.read()
    theirs = member.ask()
    lines = [
        checks.CheckResult("secret", True, f"{member.name} is known to {member.url}"),
        *checks.check_compatibility(theirs),
        *checks.check_machine(),
    ]
    _report([*lines, *checks.check_connections(member)], "")


@worker.command("run")
@click.option("--join", "url", help="first join the control plane at this URL, if this machine has not joined yet")
@_code
@_ca
def run(url: str | None, code: str | None, ca: str | None) -> None:
    """Take tasks until stopped. Ctrl-C finishes the running task first; a second one, or SIGTERM, hands it over at once."""
    from ..worker import membership, runner

    if url and not membership.membership_path().exists():
        _join(url, code, ca or "", None)
    runner.Runner(membership.Membership.read()).run()


@worker.command("install")
@click.option("--no-start", is_flag=True, help="write it, and start nothing now")
def install(no_start: bool) -> None:
    """Start the worker whenever you log in, and now: a launchd agent on macOS, a systemd user unit on Linux."""
    from ..worker import membership, service

    membership.Membership.read()
    path, note = service.install(start=not no_start)
    click.echo(f"{path}\nIt writes to {service.log_path()}" + (f"\n{note}" if note else ""))


@worker.command("status")
def status() -> None:
    """What this machine is to the team, and what it does at the moment; ends with 1 when no worker runs."""
    from ..worker import checks, membership, runner, service

    member, there = membership.Membership.read(), runner.running()
    click.echo(f"{member.name} of {member.url}, queue {member.queue}")
    if there:
        click.echo(f"  {there.state} as process {there.pid}: {there.said}")
        for task in there.tasks:
            click.echo(f"  task {task}")
    else:
        click.echo("  not running; start it with `clipft worker run`")
    click.echo(
        f"  at login: {'yes, ' + str(service.definition_path()) if service.definition_path().exists() else 'no (`clipft worker install`)'}"
    )
    click.echo(f"  log: {service.log_path() if service.log_path().exists() else 'the terminal of `clipft worker run`'}")
    for part in ("shards", "images", "models"):
        files = (p for p in settings().folder("cache", part).rglob("*") if p.is_file())
        click.echo(f"  cache of {part}: {sum(p.stat().st_size for p in files) / 2**30:.2f} GiB")
    try:
        wrong = [line for line in checks.check_compatibility(member.ask()) if not line.right]
        click.echo(
            f"  control plane: {'; '.join(line.said for line in wrong) or 'answers, and has the same versions and code'}"
        )
    except (ClipftError, TransientError) as error:
        click.echo(f"  control plane: {error}")
    sys.exit(0 if there else 1)


@worker.command("drain")
@click.option("--now", is_flag=True, help="hand the running task over to another worker instead of finishing it")
@click.option("--hours", default=24.0, show_default=True, help="how long to wait for the task")
def drain(now: bool, hours: float) -> None:
    """Take no new tasks, finish the running one, and stop."""
    from ..worker import runner

    if not runner.stop(signal.SIGTERM if now else signal.SIGINT, hours * 3600):
        click.echo("No worker runs here.")
    else:
        click.echo("The worker has stopped. `clipft worker run` starts it again.")


@worker.command("leave")
def leave() -> None:
    """Stop being a worker: the task is handed over, the secret is worthless from now on, nothing starts at login."""
    from ..worker import membership, runner, service

    member = membership.Membership.read()
    runner.stop(signal.SIGTERM, 300)
    service.uninstall()
    try:
        member.leave()
        said = "its secret is worthless now"
    except ClipftError:
        said = "the control plane did not know its secret any more"
    except TransientError as error:
        said = f"the control plane could not be told ({error}); have an operator run `clipft worker revoke {member.name}`"
    membership.delete()
    click.echo(f"{member.name} has left: {said}. Caches stay under {settings().root / 'cache'}.")


@worker.command("invite")
@click.argument("name")
@click.option("--hours", default=24.0, show_default=True, help="how long the invitation holds")
def invite(name: str, hours: float) -> None:
    """On the control plane: let a machine join once, under NAME, and print the command for it."""
    from ..contracts.worker_gateway import Invitation

    made = Invitation.model_validate(_gateway("POST", "/admin/invitations", {"name": name, "hours": hours}))
    click.echo(f"On the worker, within {made.hours:g} hours:\n\n  clipft worker join {made.url} --code {made.code}\n")


@worker.command("list")
def show() -> None:
    """On the control plane: who has joined, who is invited, who was revoked."""
    from ..contracts.worker_gateway import WorkerList

    known = WorkerList.model_validate(_gateway("GET", "/admin/workers"))
    for w in known.workers:
        seen = f"seen {_ago(known.time - w.seen)} ago" if w.seen else "never seen"
        click.echo(f"  {w.name:24} {'revoked' if w.revoked else seen:22} {w.device}")
    for name, until in known.invitations.items():
        click.echo(f"  {name:24} invited until {time.strftime('%Y-%m-%d %H:%M', time.localtime(until))}")
    if not known.workers and not known.invitations:
        click.echo("No worker has joined. Invite one: clipft worker invite NAME")


@worker.command("revoke")
@click.argument("name")
def revoke(name: str) -> None:
    """On the control plane: turn a worker away, at once. Its running task is retried elsewhere."""
    _gateway("DELETE", f"/admin/workers/{name}")
    click.echo(f"{name} is turned away from now on.")


def _report(lines: "Iterable[CheckResult]", otherwise: str) -> None:
    """Print checks as they come; ends the command when one is wrong."""
    wrong = False
    for line in lines:
        click.echo(f"  {click.style('✓', fg='green') if line.right else click.style('✗', fg='red')} {line.name:9} {line.said}")
        if not line.right:
            click.echo(f"      → {line.fix}")
            wrong |= line.name != "power"
    if wrong:
        click.echo(otherwise)
        sys.exit(1)


def _gateway(method: str, path: str, body: dict[str, object] | None = None) -> object:
    """One request of the operator's. Raises ClipftError or TransientError."""
    import httpx  # takes longer to import than the list of commands

    from ..contracts.worker_gateway import Refusal

    token = settings().gateway_token
    if token is None:
        raise ClipftError(
            "CLIPFT_GATEWAY_TOKEN",
            "it is not set",
            "Run this on the control plane: docker compose exec airflow-scheduler clipft worker …",
            code="worker.no_operator_token",
        )
    where = settings().gateway_url
    try:
        answer = httpx.request(
            method, where + path, headers={"Authorization": f"Bearer {token.get_secret_value()}"}, timeout=20, json=body
        )
    except httpx.TransportError as error:
        raise TransientError(f"The worker gateway at {where} does not answer ({error or type(error).__name__}).") from error
    if answer.is_error:
        refusal = Refusal.read(answer.content) or Refusal(detail=answer.text)
        raise ClipftError(f"the worker gateway at {where}", refusal.detail.rstrip("."), code=refusal.code)
    return answer.json()


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
