"""The sections of a run's spec on what becomes of a dataset version: every field with its default, its limits and what it is for."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from . import gate_rules
from .auxiliary import AuxiliaryLoss, Option, canonical, resolve
from .gate_rules import GateRule
from .metric_catalog import HEADLINES
from .objective_catalog import AUXILIARY, MAIN, SIMILARITIES, named
from .section import Section, settled


class ModelSpec(Section):
    """Where training starts."""

    start: str = Field(
        "starter",
        title="Start model",
        description=(
            "`starter`, `champion`, an open_clip name and pretrained tag (`ViT-B-32:openai`), a registered version "
            "(`models:/clipft-industrial/3`), `hf-hub:<owner>/<name>`, or a folder with a model package (docs/models.md); a data set is "
            "checked with its tokenizer, so that no caption is too long for it"
        ),
        examples=["starter", "champion", "ViT-B-32:openai", "ViT-B-16:laion2b_s34b_b88k"],
        json_schema_extra={"pattern": r"^\S(.*\S)?$"},
    )
    patch: int | None = Field(
        None, ge=4, le=64, title="Patch size", description="patch size to change a transformer to; empty: its own"
    )
    context: int | None = Field(
        None, ge=8, le=512, title="Context length", description="longest text in tokens to change the model to; empty: its own"
    )


class ResolutionSpec(Section):
    """Image sizes in pixels."""

    train: int | None = Field(
        None,
        ge=32,
        le=1024,
        multiple_of=2,
        title="Training size",
        description="side of the images that the model ends up for; empty: the start model's own, 128 for `starter`",
    )
    schedule: Literal["plain", "progressive", "multi_scale", "fixres"] = Field(
        "plain",
        description=(
            "`plain`: one size; `progressive`: small to large; `multi_scale`: another size each step; `fixres`: smaller, and a "
            "last tenth at full size on plain images"
        ),
    )
    sizes: list[int] = Field(
        [], max_length=8, title="Other training sizes", description="other sides to train at; empty: derived from the schedule"
    )
    aspect: Literal["crop", "pad", "squeeze"] = Field(
        "crop",
        title="Images that are not square",
        description="images that are not square: keep the center, keep all with black bars, or distort",
    )
    evaluate: list[int] = Field(
        [],
        max_length=8,
        title="Evaluation sizes",
        description="sides to evaluate at; empty: the training size and, where the model takes them, a quarter less and more",
    )

    @field_validator("evaluate", "sizes")
    @classmethod
    def _sizes(cls, sizes: list[int]) -> list[int]:
        for size in sizes:
            if not 32 <= size <= 1024 or size % 2:
                raise ValueError(f"{size} is not an even number between 32 and 1024")
        return sorted(set(sizes))

    @property
    def side(self) -> int:
        """The training size, in pixels. Raises ClipftError where it is still open."""
        return settled("resolution.train", self.train)

    @property
    def evaluated(self) -> list[int]:
        """The sides to evaluate at, smallest first. Raises ClipftError where they are still open."""
        return settled("resolution.evaluate", self.evaluate)


class ObjectiveSpec(Section):
    """What training minimizes."""

    name: str = Field(
        "info_nce",
        title="Objective",
        description=f"{named(MAIN)} (docs/objectives.md says which for what), or a class of your own as `module:Class`",
        examples=[*MAIN],
    )
    positives: Literal["pair", "caption", "label"] = Field(
        "caption", description="which rows of a batch count as the same thing, for objectives that ask"
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5, description="share of the target spread over the other rows")
    options: dict[str, Option] = Field(
        {},
        title="Options of the objectives",
        description="further options of the objective by name, and of auxiliary ones as `name.option`",
        examples=[{"text_weight": 0.4}],
    )
    auxiliary: list[str] = Field(
        [],
        title="Auxiliary objectives",
        description=(f"auxiliary objectives, `name=weight` or `name=from>to` over the run: {named(AUXILIARY)}, or any other"),
        examples=[["distillation=0.5"]],
    )
    similarity: str = Field(
        "cosine",
        description=f"how embeddings are compared: {named(SIMILARITIES)}, or `module:Class`",
        examples=[*SIMILARITIES],
    )
    temperature: float | None = Field(None, gt=0.005, le=10, description="temperature to begin with; empty: the start model's")
    dimensions: list[int] = Field(
        [], max_length=8, description="prefixes of the embedding that must work by themselves, so that the server may cut it"
    )

    @field_validator("auxiliary")
    @classmethod
    def _auxiliary(cls, texts: list[str]) -> list[str]:
        return canonical(texts)

    @model_validator(mode="after")
    def _options(self) -> Self:
        resolve(self.auxiliary, self.options)
        return self

    @property
    def main_options(self) -> dict[str, Option]:
        """Options of the main objective."""
        return resolve(self.auxiliary, self.options)[0]

    @property
    def auxiliary_losses(self) -> tuple[AuxiliaryLoss, ...]:
        """The auxiliary objectives, each with its weight and its options."""
        return resolve(self.auxiliary, self.options)[1]


class TuneSpec(Section):
    """Trials before the real training, that find better values than the template's; judged on the validation split alone."""

    trials: int = Field(0, ge=0, le=1000, description="short trainings to choose values by; 0 takes the values as they stand")
    minutes: float = Field(
        60,
        gt=0,
        le=10_080,
        title="Minutes for all trials",
        description="budget of all trials together; the one under way ends with its epoch",
    )
    objective: bool = Field(
        True,
        title="Tune the objective",
        description="tune the options that the objective and auxiliary ones declare, their weights, temperature and smoothing",
    )
    learning_rate: bool = Field(False, title="Tune the learning rate", description="tune the learning rate too")
    lora_rank: bool = Field(False, title="Tune the LoRA rank", description="tune the rank of low-rank updates too")
    epochs: int | None = Field(
        None, ge=1, le=1000, title="Epochs of a trial", description="epochs of one trial; empty: as many as the training has"
    )
    patience: int = Field(8, ge=0, description="trials without a better one before it stops early; 0 never")
    min_gain: float = Field(
        0.005,
        ge=0,
        le=1,
        title="Least gain",
        description="least gain over the template's values, as a fraction; below it they stay",
    )
    seed: int = Field(0, ge=0, title="Seed of the search", description="seed of the search")


# The fastest kind first; each is a file of `clipft_tasks.devices`.
DeviceName = Literal["mps", "cuda", "cpu"]


class MemorySpec(Section):
    """What the hardware may be asked for; empty values are decided by the plan, with a reason."""

    device: Literal["auto", DeviceName] = Field("auto", description="where to train")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="arithmetic of the towers")
    micro_batch: int | None = Field(
        None, ge=1, title="Micro-batch", description="pairs per forward pass; empty: planned from memory"
    )
    memory_gb: float | None = Field(
        None, gt=0, title="Memory in GiB", description="memory ceiling in GiB; empty: what the device recommends"
    )
    attention: Literal["auto", "fused", "sliced", "chunked"] = Field("auto", description="how attention runs")
    checkpointing: Literal["auto", "none", "some", "all"] = Field(
        "auto",
        title="Activation checkpointing",
        description="blocks that keep only their input and run again in the backward pass: none, every second, all",
    )
    compile: Literal["auto", "on", "off"] = Field("auto", title="Compilation", description="whether the towers are compiled")
    workers: int | None = Field(
        None, ge=1, le=64, title="Reading threads", description="threads that read and decode; empty: planned from the cores"
    )
    processes: int | None = Field(None, ge=1, le=64, description="training processes; empty: one a CUDA device")


class BlendSpec(Section):
    """A point between the start model and the candidate that forgot less, if it is nearly as good (WiSE-FT)."""

    points: int = Field(
        0,
        ge=0,
        le=100,
        title="Points of the blend",
        description="points of the way that are scored, evenly; 0 leaves the candidate as it is, 10 is usual",
    )
    min_gain: float = Field(
        0.9, ge=0, le=1, title="Least share of the gain", description="share of the candidate's gain that the point should keep"
    )
    max_forgetting: float = Field(
        0.5,
        ge=0,
        le=1,
        title="Most share of the forgetting",
        description="share of the candidate's forgetting that it may have",
    )


class EvaluateSpec(Section):
    """How a model is judged."""

    bootstrap: int = Field(
        1000, ge=100, le=100_000, title="Bootstrap resamples", description="resamples behind each 95% interval"
    )
    batch: int = Field(64, ge=1, le=4096, title="Evaluation batch", description="images per forward pass")
    linear_probe: bool = Field(False, description="also a linear probe and nearest neighbors; embeds the training rows too")
    robustness: int = Field(0, ge=0, le=5, description="severities of common corruptions to try, mildest first; 0 for none")
    metrics: list[str] = Field(
        [],
        max_length=20,
        title="Metrics of your own",
        description="metrics of your own, as `module:Class` or by the name of an entry point; gate rules may name them too",
        examples=[["my_metrics:TopTwo"]],
    )


class GateSpec(Section):
    """What a candidate must show before it may be registered as challenger."""

    metric: str = Field(
        "balanced_accuracy",
        title="Deciding metric",
        description="metric compared with the champion (or the start model) on the same test rows; the first that these allow where "
        "they do not allow the domain's usual one; one that you choose and they do not allow fails",
        json_schema_extra={"enum": list(HEADLINES)},
    )
    rules: list[GateRule] = Field(
        [GateRule.parse(text) for text in gate_rules.DEFAULT],
        min_length=1,
        title="Gate rules",
        description=(
            "what must hold, one rule a line: `gain(score)` is over the opponent, `gain_lower_bound(score)` the lower end of its "
            "interval, a bare name the candidate's own metric; `at every size` and `on every slice` take the worst (docs/gate.md)"
        ),
        examples=[
            ["gain_lower_bound(score) > 0", "gain(score) on every slice >= -0.05", "balanced_accuracy at every size >= 0.5"]
        ],
        json_schema_extra={"separator": ";", "default": list(gate_rules.DEFAULT)},
    )

    @field_validator("metric")
    @classmethod
    def _headline(cls, name: str) -> str:
        if name not in HEADLINES:
            raise ValueError(f"{name!r} cannot decide; choose one of {', '.join(HEADLINES)}")
        return name


class ApprovalSpec(Section):
    """Whether a person decides before the champion changes."""

    required: bool = Field(False, title="Wait for approval", description="wait for a person before promotion")
    hours: float = Field(24, gt=0, le=24 * 30, title="Hours to wait", description="how long to wait; unanswered means rejected")


class RolloutSpec(Section):
    """How a version is tried on live traffic before it becomes champion."""

    requests: int = Field(
        0,
        ge=0,
        le=100_000,
        title="Requests to see first",
        description="requests that it must see in shadow, then answer as canary; 0 promotes without a trial",
    )
    share: float = Field(0.5, gt=0, le=1, title="Share of the traffic", description="of the traffic that it sees")
    min_agreement: float = Field(
        0.5, ge=0, le=1, title="Least agreement", description="least share of images on which it names the champion's class"
    )
    max_slowdown: float = Field(
        2.0, ge=1, title="Largest slowdown", description="largest 95th percentile of its latency over the champion's"
    )
    minutes: float = Field(
        30,
        gt=0,
        le=150,
        title="Minutes for each half",
        description="time limit of each half; too little traffic in it means no promotion",
    )
