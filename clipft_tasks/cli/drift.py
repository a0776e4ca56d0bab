"""`clipft drift`, `clipft label`, `clipft breaker`: what a person does about traffic."""

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import ClipftError
from ..domains import get_domain

if TYPE_CHECKING:
    from ..contracts.drift import Capture, Incident
    from ..server.client import ServerClient

COLUMNS = ("label", "image", "predicted", "confidence", "novelty", "why", "id")


def _known(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """The domain's name; raises ClipftError with the names there are."""
    return get_domain(name).name


@click.command("drift")
@click.argument("domain", callback=_known)
def drift(domain: str) -> None:
    """Say how far what the live version of DOMAIN sees is from its reference, and what is being done about it."""
    from ..drift import incident_store, incidents
    from ..drift.thresholds import WINDOW_MIN_ROWS

    seen = _server().drift(domain)
    click.echo(f"Version {seen.version}: {seen.images} images, {seen.texts} texts, {seen.feedback} answers with feedback")
    if seen.images < WINDOW_MIN_ROWS:
        click.echo(f"Too little traffic: {seen.images} of {WINDOW_MIN_ROWS} images. Below that chance would speak.")
    for name, ratio in sorted(seen.drift.items(), key=lambda kv: -kv[1]):
        click.echo(click.style(f"  {name:12} {ratio:6.2f} times its limit", bold=ratio > 1))
    for name, value in sorted(seen.values.items()):
        click.echo(f"  {name:20} {value:.4f}")
    state, now = incident_store.load(domain), time.time()
    click.echo(f"Breaker {incidents.breaker(state, now)}, {state.failures} failures in a row.")
    if found := state.incident:
        click.echo(_handled(found, now))
    for past in state.history[-5:]:
        click.echo(f"  {_hours(now - past.closed)} ago: {', '.join(past.signals)}: {past.outcome} {past.note}")


def _handled(found: "Incident", now: float) -> str:
    signals = ", ".join(found.signals)
    if found.probation and found.on_probation:
        since = _hours(now - found.probation.since)
        return f"Version {found.probation.version} came of {signals}; on probation since {since}."
    why = found.probation.regression if found.probation else signals
    return f"Being handled since {_hours(now - found.opened)}: {why}"


@click.command("breaker")
@click.argument("domain", callback=_known)
@click.option("--reset", is_flag=True, help="close it, and forget the cool-down")
def breaker(domain: str, reset: bool) -> None:
    """Show or reset the circuit breaker of DOMAIN, which stops re-adaptations after repeated failures."""
    from ..drift import incident_store, incidents

    state = incident_store.load(domain)
    if reset:
        state = incident_store.update(domain, incidents.reset)
    click.echo(f"Breaker {incidents.breaker(state, time.time())}, {state.failures} failures in a row.")


@click.command("label")
@click.argument("domain", callback=_known)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="images that have a label too")
def label(domain: str, folder: Path, everything: bool) -> None:
    """Label captured images of DOMAIN with a spreadsheet.

    The first call fills FOLDER with images and `labels.csv`, those that help most first. Fill the column `label`, save, and
    call again: the labels go to the server, and what is still open comes back.
    """
    table = folder / "labels.csv"
    if table.exists():
        _send(domain, table)
    found = [c for c in _server().captures(domain) if everything or not c.label]
    # New images first, then those that the model was least sure of.
    found.sort(key=lambda c: (c.why != "new", c.confidence))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        dict(zip(COLUMNS, (c.label, _fetch(domain, c, folder), *(getattr(c, k) for k in COLUMNS[2:])), strict=True))
        for c in found
    ]
    part = table.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, COLUMNS)
        out.writeheader()
        out.writerows(rows)
    part.replace(table)
    click.echo(f"{len(rows)} images wait for a label in {table}." if rows else f"Every captured image of {domain} has a label.")


def _send(domain: str, table: Path) -> None:
    from ..server.client import ServerRefusalError

    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClipftError(
            f"table {table}", f"it cannot be read: {error}", "Save it as CSV in UTF-8.", code="cli.unreadable_table"
        ) from None
    if rows and not {"id", "label"} <= rows[0].keys():
        raise ClipftError(
            f"table {table}",
            "it has no columns `id` and `label`",
            "Keep the columns; fill `label`.",
            code="cli.missing_columns",
        )
    told = gone = 0
    for row in rows:
        if row["label"] and row["label"].strip():
            try:
                _server().label_capture(domain, row["id"].strip(), row["label"].strip())
                told += 1
            except ServerRefusalError as error:
                if error.status != 404:
                    raise
                gone += 1
    click.echo(f"{told} labels sent" + (f", {gone} images are no longer kept" if gone else "") + ".")


def _fetch(domain: str, capture: "Capture", folder: Path) -> str:
    data = _server().captured_image(domain, capture.id)
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    kind = next((k for start, k in kinds.items() if data.startswith(start)), "tif")
    path = folder / f"{capture.id}.{kind}"
    if not path.exists():
        path.write_bytes(data)
    return path.name


def _server() -> "ServerClient":
    from ..server.client import ServerClient  # its HTTP library takes longer to import than the list of commands

    return ServerClient()


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
