"""`clipft objective`: the menu, and whether an objective keeps what training promises."""

import inspect

import click

from ..core.errors import ClipftError
from ..spec import objective_catalog


@click.group("objective")
def objective() -> None:
    """The objectives there are, and a check of your own."""


@objective.command("list")
@click.option("--markdown", is_flag=True, help="print the tables of docs/objectives.md instead")
def show(markdown: bool) -> None:
    """List the objectives, their options and what tuning may vary."""
    if markdown:
        click.echo("\n\n".join(objective_catalog.tables()))
        return
    from ..objectives import objective_class

    for name in objective_catalog.OBJECTIVES:
        kind = objective_class(name)
        summary = next(line.strip() for line in (kind.__doc__ or "").splitlines() if line.strip())
        marks = [
            mark
            for mark, so in (("added to another", kind.auxiliary_only), ("looks at the start model", kind.needs_start))
            if so
        ]
        click.echo(click.style(name, bold=True) + (f" ({', '.join(marks)})" if marks else "") + f": {summary}")
        for option, parameter in inspect.signature(kind).parameters.items():
            varied = f"  tuned: {kind.space[option]}" if option in kind.space else ""
            click.echo(f"  {option}={parameter.default!r}{varied}")


@objective.command("check")
@click.argument("name")
@click.option("--options", default="", help="of the objective, `margin=0.3,…` or JSON")
@click.option("--similarity", "names", multiple=True, help="only this one (may be repeated) [default: all that ship]")
@click.option(
    "--skip", multiple=True, help="leave out a check (may be repeated), for example a gradient that is stopped on purpose"
)
def check(name: str, options: str, names: tuple[str, ...], skip: tuple[str, ...]) -> None:
    """Run the suite that the built-in objectives pass on NAME (`module:Class`, or one of the menu).

    Form, odd batches, float64 gradients, blocks of rows, batches in parts, MPS operators and two processes, under every
    similarity. Takes about half a minute; ends with 1 when something fails.
    """
    from ..spec import ObjectiveSpec
    from ..train import objective_checks as suite
    from .values import as_object

    if unknown := set(skip) - {*suite.ALL}:
        raise ClipftError(
            f"check {sorted(unknown)[0]!r}",
            "there is none of that name",
            f"Known: {', '.join(suite.ALL)}.",
            code="objective.unknown_check",
        )
    names = names or tuple(objective_catalog.SIMILARITIES)
    spec = ObjectiveSpec(name=name, options=as_object("--options", options) if options else {})
    suite.Subject(spec).make()  # a wrong name or option is one message, not one a check
    click.echo(f"{'':12}" + "".join(f"{n:>12}" for n in names))
    problems: dict[str, list[str]] = {}
    row: list[str] = []
    for found in suite.checked(spec, names, skip):
        row.append("failed" if found.problem else "ok")
        if found.problem:
            problems.setdefault(f"{found.check}: {found.problem}", []).append(found.similarity)
        if len(row) == len(names):
            click.echo(f"{found.check:12}" + "".join(f"{word:>12}" for word in row))
            row = []
    for problem, where in problems.items():
        click.echo(f"{problem} [{', '.join(where)}]", err=True)
    if problems:
        raise SystemExit(1)
    click.echo(f"{name} keeps what training promises.")
