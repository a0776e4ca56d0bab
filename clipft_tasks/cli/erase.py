"""`clipft erase`: rows that must be gone."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path

import click

from ..contracts.erasure import ErasureAccount
from ..core.errors import ClipftError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("erase")
@click.option("--row", "rows", multiple=True, help="a row's key, or its name in the manifest; its image goes with all its rows")
@click.option(
    "--group", "groups", multiple=True, help="all rows of a group: its pseudonym, or a patient's number as the files have it"
)
@click.option("--request", "requests", multiple=True, help="what the server captured of a request (X-Clipft-Answer-Id)")
@click.option("--image", "images", multiple=True, type=IMAGE, help="an image file: the rows that hold its bytes")
@click.option("--domain", default="", help="only of this domain [default: all]")
@click.option("--near", is_flag=True, help="list near-duplicates, which stay unless they are named too")
@click.option("--keep-packages", is_flag=True, help="name models whose packages hold the rows, and do not pack them again")
@click.option("--while-running", is_flag=True, help="go on although runs are at work on versions that hold the rows")
@click.option(
    "--backups", multiple=True, type=FOLDER, help="a backup, or a folder of backups, to look at beside those under home"
)
@click.option("--prune-backups", is_flag=True, help="delete backups that hold rows which were erased since, now or earlier")
@click.option("--dry-run", is_flag=True, help="show what would go, and end")
@click.option("--yes", is_flag=True, help="ask nobody")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def erase(
    rows: tuple[str, ...],
    groups: tuple[str, ...],
    requests: tuple[str, ...],
    images: tuple[Path, ...],
    domain: str,
    near: bool,
    keep_packages: bool,
    while_running: bool,
    backups: tuple[Path, ...],
    prune_backups: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase rows from every dataset version, and from every place that holds copies or traces of them.

    Shows first what would go, and asks. Without anything named it finishes an erasure that was cut short, or looks at backups.
    """
    from ..ops import erase as erasing
    from ..ops import installation

    installation.use_stack_settings()
    quiet = partial(redirect_stdout, sys.stderr) if as_json else nullcontext  # progress is no part of the answer
    choice = erasing.Choice(rows, groups, requests, images, domain)
    if not choice.how:
        with quiet():
            finished = erasing.finish_all()
        for account in finished:
            _show(account, as_json, near)
        if backups or prune_backups:
            _look_at_backups(backups, prune_backups and not dry_run, yes, as_json)
        elif not finished:
            raise ClipftError(
                "clipft erase", "nothing is named, and no erasure was cut short", "See --help.", code="erase.nothing_named"
            )
        return
    with quiet():
        found = erasing.look(choice)
    if dry_run or not as_json:
        _show(found, as_json, near)
    if dry_run:
        return
    if not yes and not click.confirm("Nothing brings them back. Erase?", err=True):
        raise SystemExit(1)
    with quiet():
        done = erasing.erase(choice, packages=not keep_packages, while_running=while_running)
    _show(done, as_json, near)
    if backups or prune_backups:
        _look_at_backups(backups, prune_backups, yes, as_json)


def _look_at_backups(folders: tuple[Path, ...], prune: bool, yes: bool, as_json: bool) -> None:
    """Name the backups that hold erased rows, and delete them when asked."""
    from ..ops import erase as erasing

    held = erasing.backups_that_hold(folders)
    click.echo(json.dumps(held, indent=1) if as_json else "\n".join(_of_backups(held) or ["No backup holds erased rows."]))
    if not prune or not held:
        return
    if not yes and not click.confirm(f"Is there a backup from after the erasure? Delete these {len(held)}?", err=True):
        raise SystemExit(1)
    gone = erasing.prune_backups(folders)
    click.echo(f"{len(gone)} backups were deleted.", err=as_json)


def _of_backups(held: Mapping[str, str]) -> list[str]:
    return [f"Backup {folder}, {what}" for folder, what in held.items()]


def _show(account: ErasureAccount, as_json: bool, near: bool) -> None:
    click.echo(json.dumps(account.to_json(), indent=1) if as_json else "\n".join(_lines(account, near)))


def _lines(account: ErasureAccount, near: bool) -> list[str]:
    """The account for a person."""
    images, versions = sum(account.images.values()), ", ".join(f"{tag} ({n})" for tag, n in account.rows.items())
    verb = "were erased" if account.done else "would be erased"
    lines = [f"{images} images {verb}{f' ({account.id})' if account.id else ''}; rows by version: {versions or 'none'}"]
    lines += [f"  {name}" for name in account.names]
    if account.captures:
        lines.append(f"  captured images: {account.captures}")
    lines += [f"Looks like them, and stays: {name}" for name in account.alike] if near else (
        [f"{len(account.alike)} images look like them and stay; --near lists them"] if account.alike else []
    )  # fmt: skip
    for place in account.places:
        lines.append(
            f"  {place.place}: {place.looked_at} looked at, {place.held} held some{f'; {place.note}' if place.note else ''}"
        )
    for seen in account.models:
        learned, measured = seen.rows.get("train", 0), sum(n for split, n in seen.rows.items() if split != "train")
        how = (
            f"learned from {learned} of the rows, was measured on {measured} ({seen.dataset})"
            if seen.dataset and not seen.start
            else ""
        )
        how = f"began with {seen.start}, which saw the rows" if seen.start else how
        called = f" ({', '.join(seen.aliases)})" if seen.aliases else ""
        packed = f"; {seen.packed}" if seen.packed else ""
        lines.append(f"Model {seen.model}{called} {how}{packed}".rstrip())
    if any(seen.rows.get("train") or seen.start for seen in account.models):
        lines.append(
            "Weights do not forget: fine-tune again on the version without the rows, promote that, and delete these models."
        )
    lines += [f"In use: {run}" for run in account.running]
    lines += _of_backups(account.backups)
    if account.backups:
        lines.append(
            "Make a new backup, then `clipft erase --prune-backups` deletes these; copies elsewhere: `--backups FOLDER`."
        )
    return lines
