"""`clipft doctor`, `backup`, `restore`, `gc`, `upgrade`: looking after an installation."""

import json
from dataclasses import asdict
from pathlib import Path

import click

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def doctor(as_json: bool) -> None:
    """Say where everything is, whether it is well, and the way out of what is not. Ends with 1 when something is wrong."""
    from ..ops import installation
    from ..ops.doctor import health

    installation.use_stack_settings()
    found = health.run_checks()
    click.echo(json.dumps(health.as_json(found), indent=1) if as_json else "\n".join(health.as_lines(found)))
    if not health.is_healthy(found):
        raise SystemExit(1)


@click.command("backup")
@click.argument("folder", type=FOLDER)
@click.option("--verify", is_flag=True, help="look at every byte of the backup that FOLDER holds, and make none")
@click.option("--with-secrets", "secrets", is_flag=True, help="take the installation's secrets along")
@click.option("--without-captures", is_flag=True, help="leave captured images out")
@click.option("--databases", "only_databases", is_flag=True, help="only the databases")
@click.option("--since", type=FOLDER, help="an earlier backup on the same disk: what is as it was there takes no space again")
def backup(
    folder: Path, verify: bool, secrets: bool, without_captures: bool, only_databases: bool, since: Path | None
) -> None:  # fmt: skip
    """Copy everything that cannot be made again to FOLDER, a new one, while the installation runs."""
    from ..ops import backup as backups
    from ..ops import installation

    installation.use_stack_settings()
    if verify:
        made, problems = backups.verify(folder)
        for problem in problems:
            click.echo(problem, err=True)
        if problems:
            raise SystemExit(1)
        click.echo(f"{folder} is whole: {len(made.files)} files, {installation.human_size(made.bytes)}, made {made.made}.")
        return
    made = backups.backup(
        folder, secrets=secrets, captures=not without_captures, only_databases=only_databases, since=since
    )  # fmt: skip
    for warning in made.warnings:
        click.echo(f"Look: {warning}", err=True)
    for what, where in made.references.items():
        click.echo(f"Not copied, and needed as it is: {what}, {where}")
    click.echo(f"{folder}: {len(made.files)} files, {installation.human_size(made.bytes)}.")


@click.command("restore")
@click.argument("folder", type=FOLDER)
@click.option("--with-secrets", "secrets", is_flag=True, help="put back its secrets too")
def restore(folder: Path, secrets: bool) -> None:
    """Put the backup in FOLDER into this installation, which must be empty (another CLIPFT_HOME, fresh databases)."""
    from ..ops import installation
    from ..ops import restore as restoring

    installation.use_stack_settings()
    made = restoring.restore(folder, secrets=secrets)
    for line in restoring.next_steps(made):
        click.echo(line)


@click.command("gc")
@click.option("--yes", is_flag=True, help="do it; without, it is only shown")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def collect_garbage(yes: bool, as_json: bool) -> None:
    """Show what may go, how much space it takes and why; with --yes, remove it.

    Ages come from CLIPFT_KEEP_RUNS, _DELETED, _WORK, _CACHES, _LOGS, _METADATA and CLIPFT_SERVING_CAPTURE_DAYS, in days.
    """
    from ..ops import gc, installation

    installation.use_stack_settings()
    found = gc.find()
    if as_json and not yes:
        items = [{"kind": i.kind, "what": i.what, "reason": i.reason, "bytes": i.bytes} for i in found.items]
        click.echo(json.dumps({"items": items, "skipped": found.skipped}, indent=1))
        return
    if not as_json:
        for item in found.items:
            size = installation.human_size(item.bytes) if item.bytes else ""
            click.echo(f"{item.kind:9} {size:>10}  {item.what}: {item.reason}")
        for skipped in found.skipped:
            click.echo(f"stays                 {skipped}")
    if not yes:
        total = installation.human_size(sum(i.bytes for i in found.items))
        click.echo(f"{len(found.items)} things, {total}. `clipft gc --yes` removes them." if found.items else "Nothing may go.")
        return
    done = gc.clear(found)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=1))
    else:
        for kind, freed in sorted(done.freed.items()):
            click.echo(f"{kind}: {installation.human_size(freed)} came back")
        for problem in done.failed:
            click.echo(f"Not removed: {problem}", err=True)
    if done.failed:
        raise SystemExit(1)


@click.command("upgrade")
@click.option(
    "--backup", "backups", type=FOLDER, help="folder of the backups made before tables change [default: home/backups]"
)
def upgrade(backups: Path | None) -> None:
    """Bring the installation to this release: names of files, and the databases' tables, which are backed up before they change."""
    from ..ops import installation
    from ..ops import upgrade as upgrades

    installation.use_stack_settings()
    made = upgrades.upgrade(backups)
    for note in made.notes:
        click.echo(note)
    click.echo(f"The databases are of this release.{f' Before: {made.backup}' if made.backup else ''}")


@click.group("ops")
def ops() -> None:
    """Proofs that an installation keeps what clipft promises."""


@ops.command("chaos")
@click.option("--kills", default=20, show_default=True, type=click.IntRange(0), help="processes that are killed, one at a time")
@click.option("--power-cuts", default=5, show_default=True, type=click.IntRange(0), help="times that all are killed at once")
@click.option("--seed", default=0, show_default=True, help="the same seed strikes the same tasks in the same order")
@click.option("--folder", type=FOLDER, help="a new folder for the installation [default: a temporary one]")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="write what was done, and what came of it, as JSON"
)
def chaos(kills: int, power_cuts: int, seed: int, folder: Path | None, report: Path | None) -> None:
    """Kill processes of an embedded stack, made for this, while it works; ends with 1 when anything is lost or left behind.

    It makes data sets and trains small models in rounds, and compares data, metrics, models and files with those of a run that
    nobody disturbed. The installation of this folder is not touched.
    """
    import shutil
    import tempfile

    from ..core.files import atomic_write
    from ..ops.chaos import Report, run

    def keep(made: Report) -> None:
        if report:
            atomic_write(report, json.dumps(asdict(made), indent=1) + "\n")

    place = folder or Path(tempfile.mkdtemp(prefix="clipft-chaos-"))
    made = run(place, kills, power_cuts, seed, keep)
    for strike in made.strikes:
        click.echo(f"round {strike['round']}, {strike['dag']}, {strike['task']} + {strike['delay']} s: {strike['hit']}")
    for one in made.runs:
        click.echo(f"{one.dag} {one.run}: {one.state}; tries {one.tries} {' | '.join(one.why)}".rstrip())
    for problem in made.problems:
        click.echo(f"Not as it must be: {problem}", err=True)
    click.echo(f"{len(made.strikes)} strikes, {len(made.runs)} runs, {len(made.problems)} problems, {made.seconds:.0f} s.")
    if made.problems:
        click.echo(f"It stays for you to look at: {place}", err=True)
        raise SystemExit(1)
    if not folder:
        shutil.rmtree(place)


COMMANDS = (doctor, backup, restore, collect_garbage, upgrade, ops)
