"""`clipft …`: every stage by hand, with the same spec, the same functions and the same results as in Airflow."""

import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import yaml

from .. import __version__
from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from ..spec import RunSpec, form
from . import domains, drift, objectives, ops, worker

STAGES = {
    "ingest": "Read the source into staged shards and a manifest.",
    "validate": "Check the staged rows with Great Expectations and write the report.",
    "version": "Make a dataset version of the checked rows.",
    "plan": "Say what this machine allows, each decision with its reason.",
    "tune": "Find better values than the template's by short trials, or say that there are none.",
    "finetune": "Train a candidate, or resume it.",
    "blend": "Score the way from start to candidate, and take the point that forgets less, if the spec asks for that.",
    "evaluate": "Score candidate, start model and champion at every resolution.",
    "gate": "Decide whether the candidate may be registered.",
    "register": "Register the candidate as challenger.",
    "rollout": "Try it on live traffic, in shadow and as canary, if the spec asks for that.",
    "promote": "Make it champion.",
    "deploy": "Make the server load it.",
    "verify": "Ask the server the recorded questions.",
}


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClipftError as error:
            raise click.ClickException(str(error)) from None
        except Transient as error:
            raise click.ClickException(f"{error} Try again when it is back.") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="clipft")
def main() -> None:
    """Fine-tune, prove, ship and watch CLIP models."""
    _quieten()


def _spec_options(command: Any) -> Any:
    """One option a field of RunSpec, made from its JSON schema."""
    for name, field in reversed(form().items()):
        kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
        kinds: dict[str, Any] = {"integer": int, "number": float, "boolean": bool, "array": str, "object": str, "string": str}
        choices = [c for c in field.get("enum", []) if c is not None]
        shown = "" if field.get("default") in (None, "") else f" [default: {field['default']}]"
        command = click.option(
            f"--{name}",
            name.replace(".", "__"),
            type=click.Choice(choices) if choices else kinds[kind],
            help=f"{field.get('description', '')}{shown}",
        )(command)
    command = click.option("--spec", "file", type=click.Path(path_type=Path), help="YAML with the same fields; options win")(
        command
    )
    return click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        help="folder of the stages' results [default: one a spec, under home]",
    )(command)


def read_spec(file: Path | None, options: dict[str, Any]) -> RunSpec:
    """The spec of a YAML file (nested or dotted names) and options by `section__field`; options win."""
    flat: dict[str, Any] = {}
    if file:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ClipftError(f"spec file {file}", str(error).replace("\n", " "), "Give a YAML file.") from None
        for name, value in content.items():
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    flat |= {name.replace("__", "."): value for name, value in options.items() if value is not None}
    for name, field in form().items():
        if name in flat and "array" in field["type"]:
            flat[name] = _list(flat[name], field)
        elif name in flat and "object" in field["type"]:
            flat[name] = as_object(name, flat[name])
    return RunSpec.from_flat(flat)


def _list(value: Any, field: dict[str, Any]) -> Any:
    """A list as people write one: `96, 128`, `96 128`, `[96, 128]`, or already a list; sentences end with a semicolon."""
    if isinstance(value, str) and "separator" in field:
        return [part.strip() for part in value.split(field["separator"]) if part.strip()]
    if isinstance(value, str):
        words = value.strip("[] ").replace(",", " ").split()
        return [int(w) if field["items"]["type"] == "integer" and w.isdigit() else w for w in words]
    return value if isinstance(value, list) else [value]


def as_object(name: str, value: Any) -> Any:
    """Named values as people write them: `hardness=0.5, distillation.weight=1`, or YAML and JSON alike."""
    if not isinstance(value, str):
        return value
    try:
        read = yaml.safe_load(value) if value.lstrip().startswith("{") else dict(p.split("=", 1) for p in value.split(","))
    except (yaml.YAMLError, ValueError):
        read = None
    if not isinstance(read, dict):
        raise ClipftError(f"{name} {value!r}", "it is not a list of name=value", "For example hardness=0.5,text_weight=0.4.")
    return {str(k).strip(): yaml.safe_load(v) if isinstance(v, str) else v for k, v in read.items()}


class Ledger:
    """Results of the stages of one spec, as JSON files."""

    def __init__(self, spec: RunSpec, folder: Path | None) -> None:
        self.folder = folder or settings().folder("runs", spec.identity("run", *RunSpec.model_fields))
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: str) -> dict[str, Any]:
        path = self.folder / f"{stage}.json"
        if not path.exists():
            raise ClipftError(
                f"the result of {stage}",
                f"there is none in {self.folder}",
                f"Run `clipft {stage}` with the same options first.",
            )
        return dict(json.loads(path.read_text()))

    def keep(self, stage: str, result: dict[str, Any]) -> None:
        part = self.folder / f"{stage}.part"
        part.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        os.replace(part, self.folder / f"{stage}.json")
        if stage == "evaluate":
            _metrics(self.folder, result["evaluations"])


def _metrics(folder: Path, evaluations: list[dict[str, Any]]) -> None:
    """What `dvc metrics` and `dvc plots` show."""
    who = ("before", "champion", "after")
    metrics = {w: {str(r["resolution"]): r[w][r["metric"]]["value"] for r in evaluations if w in r} for w in who}
    (folder / "metrics.json").write_text(json.dumps({w: f for w, f in metrics.items() if f}, indent=1) + "\n")
    with (folder / "resolutions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "resolution", *evaluations[0]["after"]])
        for r in evaluations:
            for w in who:
                if w in r:
                    rows.writerow([w, r["resolution"], *(round(m["value"], 6) for m in r[w].values())])


def _stage_command(name: str, summary: str) -> click.Command:
    @main.command(name, help=summary)
    @_spec_options
    def command(file: Path | None, results: Path | None, **options: Any) -> None:
        from ..stages import chain

        spec = read_spec(file, options)
        ledger = Ledger(spec, results)
        result = chain.run_stage(name, spec, ledger)
        ledger.keep(name, result)
        click.echo(json.dumps(result, indent=1, sort_keys=True))

    return command  # type: ignore[no-any-return]


for _name, _summary in STAGES.items():
    _stage_command(_name, _summary)


@main.command("run", help="All stages, one after the other, from source (or dataset version) to the verified server.")
@_spec_options
def run(file: Path | None, results: Path | None, **options: Any) -> None:
    from ..stages import chain

    spec = read_spec(file, options)
    ledger = Ledger(spec, results)
    if spec.approval.required and not sys.stdin.isatty():
        raise ClipftError("approval", "the spec asks for one and nobody is at this terminal", "Run it in Airflow.")
    for name in chain.stages_of(spec):
        click.echo(click.style(f"── {name}", bold=True), err=True)
        if name == "promote" and spec.approval.required:
            click.confirm(f"Promote {ledger('register')['model']} version {ledger('register')['version']}?", abort=True)
        began = time.monotonic()
        result = chain.run_stage(name, spec, ledger) | {"seconds": round(time.monotonic() - began, 2)}
        ledger.keep(name, result)
    verified = ledger("verify")
    click.echo(f"Version {verified['version']} of {spec.domain} is live and verified. Results: {ledger.folder}")


@main.command("rollback", help="Make the previous champion (or a named version) champion again, live and verified.")
@click.option("--domain", default=RunSpec.model_fields["domain"].default, show_default=True)
@click.option("--version", default="", help="version number [default: the one kept as previous]")
def rollback(domain: str, version: str) -> None:
    from ..stages import deploy, promote, verify
    from ..stages import rollback as stage

    spec = RunSpec.from_flat({"domain": domain})
    back = promote.run(spec, stage.run(spec, version)["version"])
    deploy.run(spec, back["version"], back["previous"])
    click.echo(json.dumps(verify.run(spec, back["version"], back["previous"]), indent=1))


@main.command("compare")
@click.argument("models", nargs=-1, required=True)
@click.option("--size", "sizes", type=int, multiple=True, help="image side; may be repeated [default: all that were evaluated]")
@click.option(
    "--dataset", default="", help="whose test rows: a version, or `newest` of those trained on [default: each its own]"
)
@click.option("--metric", default="", help="metric that is tested [default: the domain's gate.metric]")
@click.option("--unpaired", is_flag=True, help="go on without a test where test rows differ")
@click.option("--watts", type=float, help="power of the training device, for the energy estimate")
@click.option("--device", help="where to run the models [default: the fastest here]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="also write the page here")
def compare(models: tuple[str, ...], out: Path | None, device: str | None, **options: Any) -> None:
    """Put MODELS beside one another, in one page: metrics, paired tests, what changed, what it cost.

    MODELS: `industrial` (its champion and challenger), `industrial@champion`, `models:/clipft-industrial/3`, MLflow run ids.
    """
    import mlflow

    from ..stages import compare as stage

    result = stage.run(RunSpec.from_flat({"memory.device": device}), models, **options)
    if out:
        out.write_text(mlflow.artifacts.load_text(f"runs:/{result['run_id']}/comparison.html"), "utf-8")
    click.echo(json.dumps(result, indent=1))


@main.command("spec", help="Print the spec that these options make, every field, as YAML; --schema prints its JSON schema.")
@click.option("--schema", is_flag=True)
@_spec_options
def show_spec(schema: bool, file: Path | None, results: Path | None, **options: Any) -> None:
    if schema:
        click.echo(json.dumps(RunSpec.model_json_schema(), indent=1))
    else:
        click.echo(yaml.safe_dump(read_spec(file, options).model_dump(mode="json"), sort_keys=False), nl=False)


COMMANDS = (
    domains.domains,
    domains.domain,
    drift.drift,
    drift.label,
    drift.breaker,
    objectives.objective,
    worker.worker,
    ops.doctor,
    ops.backup,
    ops.restore,
    ops.gc,
    ops.upgrade,
)
for _command in COMMANDS:
    main.add_command(_command)


def _quieten() -> None:
    """Libraries that log every query or guess at a terminal stay out of the way of the stages' own lines."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "" if sys.stderr.isatty() else "1")
    os.environ.setdefault("ALEMBIC_LOG_LEVEL", "WARNING")
    for name in ("mlflow", "alembic", "great_expectations", "open_clip", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
