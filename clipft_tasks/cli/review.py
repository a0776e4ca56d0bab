"""`clipft review`: which labels of a dataset version look wrong, and a new version of what people decided."""

import json
from pathlib import Path

import click

from ..spec import RunSpec
from ..stages.call import call_stage
from .home import open_spec
from .options import Given, SpecCommand, read_fields

PAGE = "page"


class _Review(click.Group):
    """`clipft review VERSION` writes the page, `clipft review apply FILE` takes what came of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else [PAGE, *args])


@click.group("review", cls=_Review, subcommand_metavar="VERSION | apply DECISIONS.json …", no_args_is_help=True)
def review() -> None:
    """Look at the rows of a dataset version whose labels look wrong, and make a version of what you decide.

    `clipft review general/v1` writes a page that opens offline. There k keeps a label, a number gives another one, d drops the row.
    The page exports your decisions as a file; `clipft review apply FILE` makes the next version.
    """


@review.command(PAGE, cls=SpecCommand, hidden=True)
@click.argument("version", metavar="VERSION")
@click.option("--most", type=click.IntRange(1, 5000), default=200, show_default=True, help="rows on the page")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="also write the page here")
def page(version: str, most: int, out: Path | None, file: Path | None, results: Path | None, **options: Given) -> None:
    """Write the page of VERSION (`general/v1`): the rows that look most wrong first. --model.start says whose embeddings."""
    spec = open_spec(read_fields(file, options | {"dataset": version}))
    result = call_stage("review", spec, {"most": most})
    if out:
        out.write_bytes(Path(result["page"]).read_bytes())
    click.echo(json.dumps(result, indent=1))


@review.command("apply", cls=SpecCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--skip-conflicts", is_flag=True, help="where two people contradict each other, the earlier decision stands")
def apply(files: tuple[Path, ...], skip_conflicts: bool, file: Path | None, results: Path | None, **options: Given) -> None:
    """Make a dataset version of what people decided on review pages: one file, or several people's.

    What is decided stays with the domain: it is applied again whenever its source is ingested again.
    """
    from ..stages.review import read_decisions

    read = [read_decisions(path) for path in files]
    spec: RunSpec = open_spec(read_fields(file, options | {"domain": read[0].version.partition("/")[0]}))
    result = call_stage("review.apply", spec, {"files": read, "skip_conflicts": skip_conflicts})
    click.echo(json.dumps(result, indent=1, sort_keys=True))
