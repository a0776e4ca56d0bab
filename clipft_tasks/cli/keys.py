"""`clipft key …`: who may ask the inference server, for what, and how often."""

import json
import secrets
import time

import click

from ..contracts.server_keys import ServerKey, ServerKeys, hashed
from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings

SCOPES = ("infer", "feedback", "operate")


@click.group("key")
def key() -> None:
    """Keys of the server's clients: which may infer, give feedback or operate, and how often."""


@key.command("add")
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, default=("infer",), show_default=True)
@click.option("--requests-per-minute", type=click.FloatRange(min=0), default=0.0, help="0: as many as the server answers")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="that it holds; without: until it is removed")
def add(name: str, scopes: tuple[str, ...], requests_per_minute: float, days: float | None) -> None:
    """Make a key for the client NAME and show it, once.

    A client may have two while it changes from one to the other: `NAME` and `NAME-2026`, say.
    """
    found = _read()
    if any(one.name == name for one in found.keys):
        raise ClipftError(
            f"key {name}", "there is one of that name", "Remove it first, or take another name.", code="key.known"
        )
    shown = f"clipft-{secrets.token_urlsafe(32)}"
    until = time.time() + days * 86400 if days else None
    new = ServerKey.model_validate(
        {"name": name, "sha256": hashed(shown), "scopes": scopes, "requests_per_minute": requests_per_minute, "until": until}
    )
    _write(found.model_copy(update={"keys": (*found.keys, new)}))
    click.echo(f"The key of {name}, for {', '.join(scopes)}; it is shown this once:\n{shown}")


@key.command("list")
def show() -> None:
    """List the keys: names, scopes and quotas."""
    for one in _read().keys:
        quota = f"{one.requests_per_minute:g} a minute" if one.requests_per_minute else "no quota"
        ends = "" if one.until is None else time.strftime(", until %Y-%m-%d", time.gmtime(one.until))
        click.echo(f"{one.name:24} {', '.join(one.scopes):26} {quota}{ends}")


@key.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Take the key of NAME away; servers refuse it within a second."""
    found = _read()
    left = tuple(one for one in found.keys if one.name != name)
    if len(left) == len(found.keys):
        raise ClipftError(f"key {name}", "there is none of that name", "`clipft key list` shows them.", code="key.unknown")
    _write(found.model_copy(update={"keys": left}))
    click.echo(f"The key of {name} is gone.")


def _read() -> ServerKeys:
    path = settings().server_keys_file
    return ServerKeys.from_json(json.loads(path.read_bytes()), str(path)) if path.exists() else ServerKeys()


def _write(keys: ServerKeys) -> None:
    path = settings().server_keys_file
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, keys.model_dump_json(indent=1), mode=0o600)
