"""`clipft STAGE`, `run`, `rollback`, `reconcile`, `compare`, `spec`, `stages`: what Airflow runs, by hand."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import ClipftError
from ..domains import domain_names
from ..spec import RunSpec
from ..stages import chain
from ..stages.call import StageOutput, call_stage
from .home import find_domain, open_spec
from .options import Given, SpecCommand, read_fields
from .values import write_yaml

if TYPE_CHECKING:
    from .results import StageResults

DVC_HEAD = """\
# The same stages without Airflow: `dvc repro` runs what changed, `dvc metrics show` and `dvc plots show` read the results.
# Parameters are the spec's own, in params.yaml. Registration and deployment are not here: they act on shared services.
# Made by `clipft stages --dvc`, from the stages' declaration in clipft_tasks/stages/chain.py.
"""
DVC_PLOTS = """\
plots:
  - resolutions:
      title: Score by image size, start model and candidate
      x: {results/resolutions.csv: resolution}
      y: {results/resolutions.csv: balanced_accuracy}
"""


def _stage_command(name: str) -> click.Command:
    @click.command(name, cls=SpecCommand, help=chain.CHAIN[name].summary)
    def command(file: Path | None, results: Path | None, **options: Given) -> None:
        spec = open_spec(read_fields(file, options))
        kept = _results(spec, results)
        result = chain.run_stage(name, spec, kept)
        kept.keep(name, result)
        _show(result, sort_keys=True)

    return command


@click.command("run", cls=SpecCommand)
def run(file: Path | None, results: Path | None, **options: Given) -> None:
    """All stages, one after the other, from source (or dataset version) to the verified server."""
    spec = open_spec(read_fields(file, options))
    kept = _results(spec, results)
    if spec.approval.required and not sys.stdin.isatty():
        raise ClipftError(
            "approval", "the spec asks for one and nobody is at this terminal", "Run it in Airflow.", code="cli.needs_approval"
        )
    for name in chain.stages_of(spec):
        click.echo(click.style(f"── {name}", bold=True), err=True)
        if name == "promote" and spec.approval.required:
            click.confirm(f"Promote {kept('register')['model']} version {kept('register')['version']}?", abort=True)
        began = time.monotonic()
        result = chain.run_stage(name, spec, kept) | {"seconds": round(time.monotonic() - began, 2)}
        kept.keep(name, result)
    verified = kept("verify")
    click.echo(f"Version {verified['version']} of {spec.domain} is live and verified. Results: {kept.folder}")


@click.command("resplit", cls=SpecCommand)
@click.argument("name", metavar="DOMAIN")
def resplit(name: str, file: Path | None, results: Path | None, **options: Given) -> None:
    """Split a domain's rows anew: a new version of a new major, whose test rows models of before may have trained on.

    The rows are those of the newest version, or of --source, whose own splits and groups then count. In all later versions rows
    keep the split that they get now.
    """
    spec = open_spec(read_fields(file, options | {"domain": name}))
    kept = _results(spec, results)
    kept.keep("ingest", call_stage("ingest", spec, {"resplit": True}))
    for stage in ("validate", "version"):
        kept.keep(stage, call_stage(stage, spec, {"staging": kept("ingest")["staging"]}))
    _show(kept("version"), sort_keys=True)


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option("--json", "as_json", is_flag=True, help="for programs")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="write a page with images to this HTML file too")
def diff(old: str, new: str, as_json: bool, page: Path | None) -> None:
    """What differs between two dataset versions, for example `clipft diff general/v1 general/v2`."""
    from ..data import diff, diff_page, versioning

    found = diff.compare(versioning.find(old, ""), versioning.find(new, ""))
    if page:
        diff_page.write(page, found)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else diff.as_text(found))


@click.command("rollback")
@click.option("--domain", default="", help="whose champion [default: the only domain with data]")
@click.option("--version", default="", help="version number [default: the one kept as previous]")
def rollback(domain: str, version: str) -> None:
    """Make the previous champion (or a named version) champion again, live and verified."""
    spec = open_spec({"domain": domain})
    done = {"rollback": call_stage("rollback", spec, {"version": version})}
    for name in list(chain.ROLLBACK)[1:]:
        done[name] = chain.run_stage(name, spec, done.__getitem__, chain.ROLLBACK)
    _show(done["verify"])


@click.command("reconcile")
@click.option("--domain", default="", help="one domain [default: all]")
def reconcile(domain: str) -> None:
    """Bring registry and server into line where a run was cut: verify the champion, or go back; the server gets the champion."""
    for name in [domain] if domain else domain_names():
        _show(call_stage("reconcile", open_spec({"domain": name}), {}))


@click.command("compare")
@click.argument("models", nargs=-1, required=True)
@click.option("--size", "sizes", type=int, multiple=True, help="image size; may be repeated [default: all that were evaluated]")
@click.option(
    "--dataset", default="", help="whose test rows: a version, or `newest` of those trained on [default: each its own]"
)
@click.option("--metric", default="", help="metric that is tested [default: the domain's gate.metric]")
@click.option("--unpaired", is_flag=True, help="go on without a test where test rows differ")
@click.option("--watts", type=float, help="power of the training device, for the energy estimate")
@click.option("--device", help="where to run the models [default: the fastest here]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="also write the page here")
def compare(models: tuple[str, ...], out: Path | None, device: str | None, **options: object) -> None:
    """Put MODELS alongside one another, in one page: metrics, paired tests, what changed, what it cost.

    MODELS: `industrial` (its champion and challenger), `industrial@champion`, `models:/clipft-industrial/3`, MLflow run ids.
    """
    result = call_stage("compare", RunSpec.from_flat({"memory.device": device}), {"models": models, **options})
    if out:
        import mlflow

        out.write_text(mlflow.artifacts.load_text(f"runs:/{result['run_id']}/comparison.html"), "utf-8")
    _show(result)


@click.command("spec", cls=SpecCommand)
@click.option("--schema", is_flag=True)
def show_spec(schema: bool, file: Path | None, results: Path | None, **options: Given) -> None:
    """Print the spec that these options make, every field, as YAML; --schema prints its JSON schema."""
    if schema:
        click.echo(json.dumps(RunSpec.model_json_schema(), indent=1))
    else:
        given = read_fields(file, options)
        spec = RunSpec.from_flat({**given, "domain": find_domain(given)[0]})
        click.echo(write_yaml(spec.model_dump(mode="json")), nl=False)


@click.command("stages")
@click.option("--dvc", is_flag=True, help="as DVC's pipeline, the content of dvc.yaml")
def stages(dvc: bool) -> None:
    """List the stages in their order: what each does, and what it takes of which other."""
    if dvc:
        click.echo(dvc_yaml(), nl=False)
        return
    for name, stage in chain.CHAIN.items():
        taken = ", ".join([*stage.inputs.values(), *stage.pinned.values()])
        click.echo(f"{click.style(name, bold=True)}: {stage.summary}{f' Takes {taken}.' if taken else ''}")


def dvc_yaml() -> str:
    """The stages whose results depend on their spec alone, as DVC's pipeline."""
    return "".join([DVC_HEAD, "stages:\n", *_dvc_stages(), DVC_PLOTS])


def _dvc_stages() -> Iterator[str]:
    for name, stage in chain.CHAIN.items():
        if stage.params is None:
            continue
        before = [*stage.needs, *(source.partition(".")[0] for source in stage.pinned.values())]
        yield f"  {name}:\n    cmd: clipft {name} --spec params.yaml --results results\n"
        if not before:  # it reads what lies outside the pipeline, and finds in seconds that nothing changed
            yield "    always_changed: true\n"
        if before:
            yield f"    deps: [{', '.join(f'results/{other}.json' for other in before)}]\n"
        if stage.params:
            yield f"    params: [{', '.join(stage.params)}]\n"
        yield f"    outs:\n      - results/{name}.json\n"
        if stage.each:
            yield "    metrics:\n      - results/metrics.json:\n          cache: false\n"


def _results(spec: RunSpec, folder: Path | None) -> "StageResults":
    from .results import StageResults  # what it reads is of no use to the list of commands

    return StageResults(spec, folder)


def _show(result: StageOutput, sort_keys: bool = False) -> None:
    click.echo(json.dumps(result, indent=1, sort_keys=sort_keys))


CHAIN = tuple(_stage_command(name) for name in chain.CHAIN)
