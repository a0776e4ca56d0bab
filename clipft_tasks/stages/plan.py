"""plan: what this machine allows the run, each decision with its reason."""

import math

from ..contracts.stages import PlanResult
from ..core.console import say
from ..spec import RunSpec
from ..spec.metric_catalog import HEADLINES, METRICS
from .gate import deciding_metric


def run(spec: RunSpec) -> PlanResult:
    """Pin down what the run works on, and measure the hardware with the start model.

    Raises: ClipftError when the data set or start model cannot be had, the model cannot be opened again once it is written or
        takes no images of a size that is asked for, or no batch fits.
    """
    from .. import objectives
    from ..data import versioning
    from ..domains import get_domain
    from ..model import build, reopening
    from ..train import advice, plan, schedule, start_defaults, validation

    if spec.chooses_by_forgetting:
        validation.require_general_set(get_domain(spec.domain))  # and not after the training
    dataset = versioning.find(spec.dataset, spec.domain)
    if len(dataset.card.classes) < 2:  # without labels; whether captions differ shows when the rows are read
        deciding_metric(spec, [name for name in HEADLINES if not METRICS[name].needs_labels], dataset.tag)
    objectives.make(spec.objective, sorted(dataset.card.classes))  # a wrong option shows here, not after the data was read
    clip = build.load(spec.model.start, domain=spec.domain)
    temperature = round(math.exp(-float(clip.model.logit_scale.detach())), 6)
    digest, start = clip.digest, clip.source
    defaults = start_defaults.decide(spec, clip)
    values = {name: decision.value for name, decision in defaults.items()}
    spec = spec.settled(values)
    build.prepare(clip, spec)
    reopening.check_reopens(clip, sorted({*schedule.sides(spec.resolution, clip.tower.multiple), *spec.resolution.evaluated}))
    texts = plan.longest(versioning.read_manifest(dataset)["caption"])
    made = plan.make(spec, clip, dataset.card.counts["train"], texts)
    say(f"{dataset.tag} from {start}")
    for name, decision in defaults.items():
        say(f"{name}: {decision}")
    rows = dataset.card.counts["train"]
    if spec.train.method == "recipe":
        for warning in advice.advice(spec, clip, max(1, rows // min(rows, spec.train.batch)) * spec.train.epochs):
            say(f"Warning: {warning}")
    for line in made.lines():
        say(line)
    return PlanResult(dataset=dataset.tag, start=start, digest=digest, temperature=temperature, plan=made, settled=values)
