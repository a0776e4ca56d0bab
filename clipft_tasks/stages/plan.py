"""plan: what this machine allows the run, each decision with its reason."""

from typing import Any

from ..progress import say
from ..spec import RunSpec


def run(spec: RunSpec) -> dict[str, Any]:
    """Probe the hardware with the start model.

    Returns: plan (decisions by name), resolutions to evaluate at, the start model's source and digest.
    Raises: ClipftError when the start model cannot be had or no batch fits.
    """
    from ..model import build
    from ..train import plan

    clip = build.load(spec.model.start, domain=spec.domain)
    decided = plan.make(spec, clip)
    for line in decided.lines():
        say(line)
    return {"plan": decided.to_dict(), "resolutions": spec.resolution.evaluate, "start": clip.source}
