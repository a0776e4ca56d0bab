"""`clipft domains`, `clipft domain new`: the profiles there are and why, and a file to begin one's own with."""

import os
import shlex
import textwrap
from pathlib import Path

import click

from ..core.settings import settings

WIDTH = 112


@click.command("domains", help="List the domains: each choice that is not the general default, and why it stands.")
def domains() -> None:
    from ..domains import domain_names, get_domain

    for number, name in enumerate(domain_names()):
        domain = get_domain(name)
        click.echo(click.style(f"{'' if not number else chr(10)}{name}: {domain.title}", bold=True))
        choices = domain.choices()
        for choice in [*choices, *(c for c in domain.why if c not in choices)]:
            said = f"{choice} = {_short(choices[choice])}" if choice in choices else choice
            reason = domain.why.get(choice, "no reason given")
            click.echo(textwrap.fill(f"{said}: {reason}", WIDTH, initial_indent="  ", subsequent_indent="      "))


def _short(value: object) -> str:
    return f"{len(value)} templates" if isinstance(value, tuple) and "{}" in str(value) else str(value)


@click.group("domain", help="Domains of your own.")
def domain() -> None:
    pass


@domain.command("new", help="Write a commented domain, one file, to begin with.")
@click.argument("name")
@click.option("--like", default="general", show_default=True, help="domain whose choices it begins with")
@click.option("--path", type=click.Path(dir_okay=False, path_type=Path), help="where to [default: NAME.py, here]")
def new(name: str, like: str, path: Path | None) -> None:
    from ..domains import scaffold

    file = scaffold.write(name, like, path or Path(f"{name}.py"))
    parts = [part for part in settings().domains_path.split(os.pathsep) if part]
    if not {file, file.parent} & {Path(part).expanduser().absolute() for part in parts}:
        parts.append(str(file))
    click.echo(f"Wrote {file}: each choice, what it does, and why {like} makes it. Change what differs, then")
    click.echo(f"  export CLIPFT_DOMAINS_PATH={shlex.quote(os.pathsep.join(parts))}")
    click.echo(f"  clipft ingest --domain {name} --source IMAGES")
