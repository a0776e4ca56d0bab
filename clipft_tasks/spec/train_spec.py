"""The section of a run's spec on the training itself."""

from typing import Literal

from pydantic import Field

from ..contracts.low_rank import LowRankForm, Variant
from .section import Section, settled


class TrainSpec(Section):
    """The optimization."""

    method: Literal["recipe", "few_shot"] = Field(
        "recipe",
        description=(
            "`recipe` trains with the fields below; `few_shot`, for 1 to 16 images a class, chooses between what the prompts say, "
            "classifiers fitted to the images' embeddings, and short trainings, and needs no validation rows (docs/training.md)"
        ),
    )
    epochs: int = Field(8, ge=1, le=1000, description="passes over the training split")
    batch: int = Field(
        64, ge=2, le=65536, title="Batch, in pairs", description="effective batch, in pairs; what the objective sees at once"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1.0,
        description="peak learning rate of AdamW; empty: by the start model's kind, 2e-4 for `starter`, 1e-5 for CLIP's transformers",
    )
    rate_factor: float = Field(
        1.0, gt=0, le=100, description="factor on the learning rate that follows from the start model; a given one stays"
    )
    beta2: float | None = Field(
        None,
        gt=0,
        lt=1,
        title="Second beta of AdamW",
        description=(
            "decay of AdamW's running mean of squares; empty: by the start model's kind, 0.98 for transformers (with CLIP's epsilon of "
            "1e-6), else 0.999"
        ),
    )
    weight_decay: float = Field(0.05, ge=0, le=1.0, description="AdamW weight decay; not on norms, biases and scales")
    l2_start: float = Field(
        0.0,
        ge=0,
        le=100,
        title="Pull to the start model (L2)",
        description="pull of the weights towards the start model's, decoupled like the decay; 0 for none",
    )
    warmup: float = Field(0.1, ge=0, le=0.9, description="share of the steps in which the learning rate rises")
    grad_clip: float = Field(1.0, ge=0, title="Gradient clipping", description="largest gradient norm; 0 turns clipping off")
    sampling: Literal["balanced", "shuffled", "spread"] = Field(
        "balanced",
        description="`balanced` draws rare classes as often as common ones; `spread` keeps rows of one group in different batches",
    )
    rules: list[str] = Field(
        [],
        title="Learning rates by name",
        description="ordered `pattern=freeze` or `pattern=factor of the learning rate`; the first that matches a name wins",
        examples=[["visual.conv1*=freeze", "visual.*=0.1"]],
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate per block, counted from the heads",
    )
    lora_rank: int = Field(
        0, ge=0, le=256, title="LoRA rank", description="rank of low-rank updates of frozen weights; 0 trains the weights"
    )
    lora_text_rank: int | None = Field(
        None,
        ge=0,
        le=256,
        title="LoRA rank of the text tower",
        description="rank in the text tower, where it is another one; 0: only its heads train; empty: that of both",
    )
    lora_alpha: float | None = Field(
        None, gt=0, le=4096, title="LoRA alpha", description="numerator of the updates' factor, alpha / rank; empty: the rank"
    )
    lora_variant: Variant = Field(
        "plain",
        title="LoRA variant",
        description="`plain`; `rslora`: factor alpha / root of the rank, for high ranks; `dora`: each output's length is learned apart",
    )
    head_first: float = Field(
        0.0, ge=0, le=0.9, title="Heads first", description="share of the steps in which only the heads train"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Moving average of the weights (EMA)",
        description="decay of a running average of the weights, which is kept; 0 for none",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        title="Epoch to keep",
        description="which epoch's weights: the best on the validation split (balanced accuracy, else R@1), or the last",
    )
    max_forgetting: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Most forgetting",
        description="most that an epoch may lose on the general set, as a fraction, to be the best; 1: any",
    )
    patience: int = Field(0, ge=0, description="epochs without a better one before stopping early; 0 never")
    seed: int = Field(0, ge=0, description="seed of order, augmentation and dropout")
    checkpoint_seconds: float = Field(
        20, ge=0, title="Seconds between checkpoints", description="seconds between checkpoints; 0 writes one each step"
    )

    @property
    def low_rank(self) -> LowRankForm | None:
        """The low-rank updates that train in place of the weights; None where the weights do."""
        if not self.lora_rank:
            return None
        text = self.lora_rank if self.lora_text_rank is None else self.lora_text_rank
        return LowRankForm(image_rank=self.lora_rank, text_rank=text, alpha=self.lora_alpha, variant=self.lora_variant)

    @property
    def peak_rate(self) -> float:
        """The peak learning rate. Raises ClipftError where it is still open."""
        return settled("train.learning_rate", self.learning_rate)

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW; its own where nobody decided the second."""
        return 0.9, self.beta2 or 0.999

    @property
    def epsilon(self) -> float:
        """Of AdamW: CLIP's where its second beta is CLIP's (Radford et al. 2021, table 19), else PyTorch's."""
        return 1e-6 if self.betas[1] <= 0.98 else 1e-8
