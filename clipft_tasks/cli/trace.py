"""`clipft trace`: which images stand behind an answer."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..ops.trace import Ancestor


@click.command("trace")
@click.argument("asked", metavar="ANSWER")
@click.option("--images", type=click.Path(dir_okay=False, path_type=Path), help="write a CSV with every image behind it here")
def trace(asked: str, images: Path | None) -> None:
    """Say which model version, training and images stand behind ANSWER.

    ANSWER: the X-Clipft-Answer-Id of an answer, or a version: `industrial` (its champion), `industrial@previous`, `industrial/3`.
    """
    from ..ops import trace
    from .home import use_running_stack

    use_running_stack()
    found = trace.ancestors(asked)
    for number, each in enumerate(found):
        click.echo("\n".join(_lines(each, began="It was trained from" if number else "")))
    rows = trace.images(found)
    groups = rows["group"].loc[rows["group"] != ""].nunique()
    of_groups = f" of {groups:,} groups" if groups else ""
    click.echo(f"{rows['sha256'].nunique():,} images{of_groups} were looked at in these trainings.")
    if images:
        rows.to_csv(images, index=False)
        click.echo(f"Each of them: {images}")


def _lines(found: "Ancestor", began: str) -> list[str]:
    name = click.style(f"{found.model} version {found.version}", bold=True)
    lines = [f"{began} {name}".strip(), f"  start model {found.start or 'not noted'}"]
    if found.counts is None:
        lines.append(f"  data {found.dataset or 'not noted'}, which is not here any more")
    else:
        rows = ", ".join(f"{rows:,} {split}" for split, rows in found.counts.items())
        lines.append(f"  data {found.dataset} ({rows} rows), revision {found.revision}")
    lines.append(f"  MLflow run {found.run_id}" + (f", Airflow run {found.dag_run}" if found.dag_run else ""))
    return lines + ([f"  {found.link}"] if found.link else [])
