"""plan: what this machine allows the run, each decision with its reason."""

import math
from typing import Any

from ..core.console import say
from ..spec import RunSpec


def run(spec: RunSpec) -> dict[str, Any]:
    """Pin down what the run works on, and probe the hardware with the start model.

    Returns: dataset (tag) and start (a version, never `champion`), so that a retry works on the same; digest and temperature
        of the start model; plan (decisions by name); hardware (what it was made for).
    Raises: ClipftError when the data set or start model cannot be had, or no batch fits.
    """
    from .. import objectives
    from ..data import versioning
    from ..devices.hardware import probe
    from ..domains import get_domain
    from ..model import build
    from ..train import plan, validation

    if spec.blend.points or spec.train.max_forgetting < 1:
        validation.require_general_set(get_domain(spec.domain))  # and not after the training
    dataset = versioning.find(spec.dataset, spec.domain)
    objectives.make(spec.objective, sorted(dataset.card["classes"]))  # a wrong option shows here, not after the data was read
    clip = build.load(spec.model.start, domain=spec.domain)
    temperature = round(math.exp(-float(clip.model.logit_scale.detach())), 6)
    start = {"start": clip.source, "digest": clip.digest, "temperature": temperature}
    build.prepare(clip, spec)
    decided = plan.make(spec, clip, rows=dataset.card["counts"]["train"])
    say(f"{dataset.tag} from {clip.source}")
    for line in decided.lines():
        say(line)
    hardware = probe(spec.memory.device).likeness()
    return {"dataset": dataset.tag, **start, "plan": decided.to_dict(), "hardware": hardware}
