"""The ways that are compared. Those of clipft are fields of a run; what else each needs stands beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The domain's recipe without what holds a model near its start.
PLAIN: Mapping[str, object] = {
    "objective.auxiliary": [],
    "objective.options": {},
    "train.layer_decay": 1.0,
    "train.rate_factor": 1.0,
}
RATES = (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Args:
        fields: of the run, on top of the domain's.
        runs: trainings whose weights are averaged; they share the seconds.
        alpha: share of the way from the start's weights to the trained ones.
        trainer: what trains.
        rate: learning rate of another trainer; None: its own default.
        note: what it is here.
    """

    note: str
    fields: Mapping[str, object] = field(default_factory=dict)
    runs: int = 1
    alpha: float = 1.0
    trainer: str = "clipft"
    rate: float | None = None


METHODS: Mapping[str, Method] = {
    "clipft, default": Method("the domain's recipe"),
    "full": Method("all weights, the domain's objective, nothing that holds them", PLAIN),
    "FLYP": Method(
        "all weights, the objective of CLIP's pretraining",
        {**PLAIN, "objective.name": "info_nce", "objective.positives": "caption"},
    ),
    "LP-FT": Method("the heads first, for three tenths of the steps, then all weights", {**PLAIN, "train.head_first": 0.3}),
    "L2-SP": Method("all weights, pulled to the start's", {**PLAIN, "train.l2_start": 30.0}),
    "WiSE-FT": Method("`full`, halfway back to the start's weights", PLAIN, alpha=0.5),
    "soup": Method("the mean of three of `full` with three rates, a third of the seconds each", PLAIN, runs=3),
    "LoRA": Method("updates of rank 16", {**PLAIN, "train.lora_rank": 16}),
    "CaRot's terms": Method(
        "FLYP, an image projection that stays orthogonal, and distillation; its teacher is the start, not a moving average",
        {**PLAIN, "objective.name": "info_nce", "objective.positives": "caption",
         "objective.auxiliary": ["bench.frontier.carot:Orthogonal=0.2", "distillation=1"]},
    ),
    "open_clip_train, defaults": Method("open_clip's own trainer", trainer="open_clip"),
    **{f"open_clip_train, {rate:g}": Method("the same at another rate", trainer="open_clip", rate=rate) for rate in RATES},
    "sentence-transformers": Method("its trainer, MultipleNegativesRankingLoss, its defaults", trainer="sentence_transformers"),
}  # fmt: skip
SOUP_RATES = (0.5, 1.0, 2.0)  # factors of the recipe's learning rate
