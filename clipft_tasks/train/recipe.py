"""What makes two trainings the same work."""

from collections.abc import Mapping
from dataclasses import asdict

from .. import objectives
from ..data.versioning import Version
from ..domains import get_domain
from ..spec import RunSpec

RECIPE = 7  # raise when training gives other results for the same spec, so that old runs are not taken for new ones

LOW_RANK = 2  # likewise, of trainings with low-rank updates alone


def work_key(spec: RunSpec, version: Version, digest: str) -> str:
    """The identity of a training: what it is asked, on which data, from which weights, with which code.

    Args:
        digest: of the start model's weights.
    """
    return spec.identity(
        "finetune",
        "domain",
        "objective",
        "train",
        "memory",
        resolution=spec.resolution.model_dump(exclude={"evaluate"}),
        model=spec.model.model_dump(exclude={"start"}),
        dataset=version.revision,
        start=digest,
        recipe=[RECIPE, LOW_RANK] if spec.train.low_rank else RECIPE,
        code=objectives.source_digests(spec.objective),
        metric=spec.gate.metric,
        profile=profile_of(spec),
    )


def profile_of(spec: RunSpec) -> Mapping[str, object]:
    """What a run's domain says of how images and texts are treated: edited, it makes other work, though its name stays."""
    domain = get_domain(spec.domain)
    return {
        "augment": asdict(domain.augment),
        "prompts": domain.prompts,
        "gray_bits": domain.gray_bits,
        "general_set": domain.general_set,
    }


def code_versions(spec: RunSpec) -> dict[str, str | int]:
    """Versions of the code that trains, by name: clipft's recipe, and files of objectives that do not ship with it."""
    return {"clipft": RECIPE, **objectives.source_digests(spec.objective)}
