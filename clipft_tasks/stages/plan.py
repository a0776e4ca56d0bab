"""plan: what this machine allows the run, each decision with its reason."""

from typing import Any

from ..progress import say
from ..spec import RunSpec


def run(spec: RunSpec) -> dict[str, Any]:
    """Pin down what the run works on, and probe the hardware with the start model.

    Returns: dataset (tag) and start (a version, never `champion`), so that a retry works on the same; plan (decisions by
        name).
    Raises: ClipftError when the data set or start model cannot be had, or no batch fits.
    """
    from ..data import versioning
    from ..model import build
    from ..model.resolution import set_side
    from ..train import plan

    dataset = versioning.find(spec.dataset, spec.domain).tag
    clip = set_side(build.load(spec.model.start, domain=spec.domain), spec.resolution.train)
    decided = plan.make(spec, clip)
    say(f"{dataset} from {clip.source}")
    for line in decided.lines():
        say(line)
    return {"dataset": dataset, "start": clip.source, "plan": decided.to_dict()}
