"""The chain: which stage needs what of which other. What the DAGs draw as arrows, for everyone who works without Airflow."""

from collections.abc import Callable
from typing import Any

from ..spec import RunSpec
from . import blend, deploy, evaluate, finetune, gate, ingest, plan, promote, register, rollout, tune, validate, verify, version

Done = Callable[[str], dict[str, Any]]  # a stage's result by its name


def _evaluate(spec: RunSpec, done: Done) -> dict[str, Any]:
    run_id = done("blend")["run_id"]
    return {"evaluations": [evaluate.run(spec, run_id, size) for size in spec.resolution.evaluate]}


def _plan(spec: RunSpec, done: Done) -> dict[str, Any]:
    if spec.source and not spec.dataset:  # what was just versioned, not whatever is newest by now
        spec = spec.model_copy(update={"dataset": done("version")["dataset"]})
    return plan.run(spec)


CHAIN: dict[str, Callable[[RunSpec, Done], dict[str, Any]]] = {
    "ingest": lambda spec, done: ingest.run(spec),
    "validate": lambda spec, done: validate.run(spec, done("ingest")["staging"]),
    "version": lambda spec, done: version.run(spec, done("ingest")["staging"]),
    "plan": _plan,
    "tune": lambda spec, done: tune.run(spec, done("plan")),
    "finetune": lambda spec, done: finetune.run(spec, done("plan"), done("tune") if spec.tune.trials else None),
    "blend": lambda spec, done: blend.run(spec, done("finetune")["run_id"]),
    "evaluate": _evaluate,
    "gate": lambda spec, done: gate.run(spec, done("blend")["run_id"], done("evaluate")["evaluations"]),
    "register": lambda spec, done: register.run(spec, done("blend")["run_id"], done("gate")),
    "rollout": lambda spec, done: rollout.run(spec, done("register")["version"]),
    "promote": lambda spec, done: promote.run(spec, done("rollout")["version"]),
    "deploy": lambda spec, done: deploy.run(spec, done("promote")["version"], done("promote")["previous"]),
    "verify": lambda spec, done: verify.run(spec, done("promote")["version"], done("promote")["previous"]),
}
DATA_STAGES = ("ingest", "validate", "version")


def run_stage(name: str, spec: RunSpec, done: Done) -> dict[str, Any]:
    """Run one stage with the results of those before it. `version` refuses rows that were not validated."""
    if name == "version":
        done("validate")
    return CHAIN[name](spec, done)


def stages_of(spec: RunSpec) -> list[str]:
    """The stages that a whole run of `spec` takes: without a source it starts from an existing dataset version."""
    return [name for name in CHAIN if (spec.source or name not in DATA_STAGES) and (spec.tune.trials or name != "tune")]
