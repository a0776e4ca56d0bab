"""The stages, declared once: what each does, what it takes of which other, where it runs.

A stage is a file of this folder, whose function `run` does it, and an entry here. The command line, the DAGs
`clipft_dataset`, `clipft_finetune` and `clipft_rollback`, dvc.yaml (`clipft stages --dvc`) and the links of Airflow's tasks
derive from it. Nothing heavy is imported: a stage's module is, when the stage runs.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..spec import RunSpec
from .call import StageOutput, call_stage

Done = Callable[[str], StageOutput]  # a stage's result by its name; raises where there is none


@dataclass(frozen=True)
class Each:
    """A stage that runs once for each of several values.

    Attributes:
        parameter: of the stage's function, that takes one value.
        values: of a spec.
        collected: the field of the whole result that lists what each run returned.
    """

    parameter: str
    values: Callable[[RunSpec], Sequence[int]]
    collected: str


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        summary: for `clipft --help` and Airflow.
        inputs: where each parameter comes from: `stage.field` of another stage's result, or `stage` for the whole of it.
        after: stages that must have ended well, though it takes nothing of them.
        pinned: fields of the spec that an earlier stage decides where the spec leaves them open, likewise.
        each: where it runs once for each of several values.
        taken: whether the run of a spec takes it at all.
        accelerator: whether it runs where the accelerator is; else beside the services.
        hours: after which Airflow gives a try up.
        params: the parts of the spec that its result depends on, for DVC; None: it decides or changes what others share,
            and is no part of the pipeline.
        links: names of the pages that its result links to.
    """

    summary: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    pinned: Mapping[str, str] = field(default_factory=dict)
    each: Each | None = None
    taken: Callable[[RunSpec], bool] = lambda spec: True
    accelerator: bool = False
    hours: float = 1
    params: tuple[str, ...] | None = None
    links: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """The stages before it, without those that only pin its spec."""
        return list(dict.fromkeys([*(source.partition(".")[0] for source in self.inputs.values()), *self.after]))

    def arguments(self, done: Done, skipped: Container[str] = ()) -> dict[str, object]:
        """What its function takes of the results of other stages, without those that were skipped."""
        return _read(self.inputs, done, skipped)


def _from_source(spec: RunSpec) -> bool:
    return bool(spec.source)


_SETTLED = {"settled": "plan.settled"}  # what the spec leaves open and the start model decides; `call_stage` fills it in
_DATA_HOURS = 24 * 14  # any size of data; a limit only for what hangs
_TRAINING = ("train", "memory", "resolution.train", "resolution.schedule", "resolution.sizes", "resolution.aspect")

# From a source, or a dataset version, to the verified server.
CHAIN: dict[str, Stage] = {
    "ingest": Stage(
        "Read the source into staged shards and a manifest.",
        taken=_from_source,
        hours=_DATA_HOURS,
        params=("domain", "source", "data"),
    ),
    "validate": Stage(
        "Check the staged rows with Great Expectations and write the report.",
        {"staging": "ingest.staging"},
        taken=_from_source,
        hours=_DATA_HOURS,
        params=("model",),
        links=("Data report",),
    ),
    "version": Stage(
        "Make a dataset version of the checked rows.",
        {"staging": "ingest.staging"},
        after=("validate",),
        taken=_from_source,
        hours=_DATA_HOURS,
        params=(),
    ),
    "plan": Stage(
        "Say what this machine allows, each decision with its reason.",
        pinned={"dataset": "version.dataset"},
        accelerator=True,
        hours=24,
        params=("model", *_TRAINING),
    ),
    "tune": Stage(
        "Find better values than the template's by short trials, or say that there are none.",
        {"planned": "plan"},
        taken=lambda spec: spec.tune.trials > 0,
        accelerator=True,
        hours=24,
        params=("domain", "model", "objective", "tune", *_TRAINING),
        links=("MLflow run", "Tuning"),
    ),
    "finetune": Stage(
        "Train a candidate, or resume it, or find the finished run of the same work.",
        {"planned": "plan", "tuned": "tune"},
        accelerator=True,
        hours=24,
        params=("domain", "model", "objective", *_TRAINING),
        links=("MLflow run",),
    ),
    "blend": Stage(
        "Score the way from start to candidate, and take the point that forgets less, if the spec asks for that.",
        {"run_id": "finetune.run_id"} | _SETTLED,
        accelerator=True,
        hours=24,
        params=("blend",),
        links=("Blending",),
    ),
    "evaluate": Stage(
        "Score candidate, start model and champion at every image size.",
        {"run_id": "blend.run_id"} | _SETTLED,
        each=Each("size", lambda spec: spec.resolution.evaluated, "evaluations"),
        accelerator=True,
        hours=24,
        params=("resolution.evaluate", "evaluate", "gate"),
    ),
    "gate": Stage(
        "Decide whether the candidate may be registered.",
        {"run_id": "blend.run_id", "evaluations": "evaluate.evaluations"} | _SETTLED,
        hours=24,  # where the champion changed between two evaluations, they are made again here
        links=("Evaluation",),
    ),
    "register": Stage(
        "Register the candidate as challenger.",
        {"run_id": "blend.run_id", "gate": "gate"},
        links=("Model version",),
    ),
    "rollout": Stage(
        "Try it on live traffic, in shadow and as canary, if the spec asks for that.",
        {"version": "register.version"},
        hours=6,
    ),
    "promote": Stage(
        "Make it champion, under the domain's lease; the one before is kept as previous.",
        {"version": "rollout.version", "opponent": "gate.opponent"} | _SETTLED,
        hours=24,  # where the champion changed since the gate, the models are evaluated here
    ),
    "deploy": Stage(
        "Make the server load it and check it against its recorded answers.",
        {"version": "promote.version", "previous": "promote.previous"},
        links=("Server",),
    ),
    "verify": Stage(
        "Ask the server the recorded questions.",
        {"version": "deploy.version", "previous": "promote.previous"},
        links=("Server",),
    ),
}

# Back to a version that was champion before.
ROLLBACK: dict[str, Stage] = {
    "rollback": Stage("Say which version to go back to; nothing changes yet."),
    "promote": replace(CHAIN["promote"], inputs={"version": "rollback.version"}),
    "deploy": CHAIN["deploy"],
    "verify": CHAIN["verify"],
}

# Those that are no part of a chain.
OTHERS: dict[str, Stage] = {
    "compare": Stage("Put models alongside one another, in one page.", accelerator=True, hours=24, links=("Comparison",)),
    "review": Stage("Show the rows whose labels look wrong.", accelerator=True, hours=24, links=("Label review",)),
    "triage": Stage("Decide whether an alert is acted on."),
    "suggest": Stage("Say what drifted and what should be done about it.", links=("Drift report",)),
    "close": Stage("Record what came of an incident."),
    "reconcile": Stage("Bring registry and server into line, after a run that was cut."),
    "maintenance": Stage("Back the installation up, and remove what may go.", hours=_DATA_HOURS),
}

STAGES: dict[str, Stage] = ROLLBACK | OTHERS | CHAIN


def run_stage(name: str, spec: RunSpec, done: Done, chain: Mapping[str, Stage] = CHAIN) -> StageOutput:
    """Run one stage of a chain on the results of those before it.

    Raises: what the stage raises, and what `done` raises for a result that is missing.
    """
    stage = chain[name]
    for other in stage.after:
        done(other)
    skipped = [other for other in chain if not chain[other].taken(spec)]
    inputs = stage.arguments(done, skipped)
    left_open = {key: source for key, source in stage.pinned.items() if not getattr(spec, key)}
    spec = spec.model_copy(update=_read(left_open, done, skipped))
    if stage.each and isinstance(settled := inputs.get("settled"), Mapping):
        spec = spec.settled(settled)
    if (each := stage.each) is None:
        return call_stage(name, spec, inputs)
    return {each.collected: [call_stage(name, spec, inputs | {each.parameter: value}) for value in each.values(spec)]}


def stages_of(spec: RunSpec) -> list[str]:
    """The stages that a whole run of `spec` takes: without a source it starts from an existing dataset version."""
    return [name for name, stage in CHAIN.items() if stage.taken(spec)]


def links() -> list[str]:
    """The names of all pages that stages link to, each once."""
    return list(dict.fromkeys(link for stage in (*CHAIN.values(), *OTHERS.values()) for link in stage.links))


def _read(sources: Mapping[str, str], done: Done, skipped: Container[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, source in sources.items():
        stage, _, key = source.partition(".")
        if stage not in skipped:
            result = done(stage)
            if key != "settled" or key in result:  # a plan of an earlier release has none
                found[name] = result[key] if key else result
    return found
