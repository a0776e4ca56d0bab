"""`clipft index …`: what can be searched, and its indexes."""

import time

import click


@click.group("index")
def index() -> None:
    """Search over images of one's own: build, refresh and list indexes, forget rows of them."""


@index.command("build")
@click.argument("domain")
@click.option(
    "--source", default="", help="a dataset version (industrial/v1), a folder, a table …; default: the newest version"
)
@click.option("--version", default="", help="of the model; default: the champion")
def build(domain: str, source: str, version: str) -> None:
    """Make the index of DOMAIN: each image of a source through its champion. The server searches it from then on."""
    from .. import search
    from ..domains import get_domain

    made = search.build(get_domain(domain).name, source, version).card
    refused = f", {made.refused} that cannot be read passed over" if made.refused else ""
    click.echo(f"{made.rows} images of {made.source} are indexed for version {made.version} of {made.domain}{refused}.")


@index.command("refresh")
@click.argument("domain")
@click.option("--version", default="", help="of the model; default: the champion")
def refresh(domain: str, version: str) -> None:
    """Make the index of another version of DOMAIN from the same source, beside the one that there is."""
    from .. import search
    from ..core.errors import ClipftError
    from ..domains import get_domain

    found = search.refresh(get_domain(domain).name, version)
    if found is None:
        raise ClipftError(f"the index of {domain}", "there is none", f"clipft index build {domain}", code="search.no_index")
    click.echo(f"{found.card.rows} images of {found.card.source} are indexed for version {found.card.version} of {domain}.")


@index.command("list")
def show() -> None:
    """List the indexes, the newest first."""
    from ..search import cards

    for card in cards():
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(card.made))
        click.echo(f"{card.domain:16} version {card.version:4} {card.rows:8} images of {card.source}, made {made}")


@index.command("forget")
@click.argument("rows", nargs=-1, required=True)
@click.option("--domain", default="", help="default: every domain's")
def forget(rows: tuple[str, ...], domain: str) -> None:
    """Remove ROWS, by the ids that hits name, from the indexes."""
    from ..search import forget

    click.echo(f"{forget(rows, domain)} rows are removed.")
