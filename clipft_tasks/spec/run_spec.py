"""RunSpec: the one description of a run."""

import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Self

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from ..core.errors import ClipftError
from ..domains import domain_names, get_domain
from . import fields, reader_catalog
from .auxiliary import applicable
from .data_spec import DataSpec
from .section import Section
from .sections import (
    ApprovalSpec,
    BlendSpec,
    EvaluateSpec,
    GateSpec,
    MemorySpec,
    ModelSpec,
    ObjectiveSpec,
    ResolutionSpec,
    RolloutSpec,
    TuneSpec,
)
from .train_spec import TrainSpec

SECTIONS: dict[str, str] = {
    "run": "What to run",
    "data": "Data set",
    "model": "Start model",
    "resolution": "Resolutions",
    "objective": "Objective",
    "tune": "Tuning",
    "train": "Training",
    "memory": "Hardware and memory",
    "blend": "Blending",
    "evaluate": "Evaluation",
    "gate": "Gate",
    "approval": "Approval",
    "rollout": "Rollout",
}


class RunSpec(Section):
    """A whole run, from source to served model."""

    domain: str = Field(
        "industrial",
        description=(
            "whose prompts, augmentation, checks and defaults the run takes: `industrial` for parts under a camera, `medical` for scans "
            "and slides, `scientific` for figures and micrographs, `general` for everything else, or one of your own (docs/extending.md)"
        ),
    )
    source: str = Field(
        "",
        description=f"what to ingest: {reader_catalog.sources()}",
        examples=reader_catalog.examples(),
    )
    dataset: str = Field(
        "",
        title="Dataset version",
        description="dataset version to train on (`industrial/v3`); empty: the newest of the domain",
        json_schema_extra={"pattern": r"^([A-Za-z_]\w*/v\d+)?$"},
    )
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    resolution: ResolutionSpec = ResolutionSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    tune: TuneSpec = TuneSpec()
    train: TrainSpec = TrainSpec()
    memory: MemorySpec = MemorySpec()
    blend: BlendSpec = BlendSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()
    approval: ApprovalSpec = ApprovalSpec()
    rollout: RolloutSpec = RolloutSpec()

    @field_validator("domain")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in domain_names():
            raise ValueError(f"no domain {name!r}; known: {', '.join(domain_names())}")
        return name

    @field_validator("source")
    @classmethod
    def _pasted(cls, value: str) -> str:
        """Without what comes along where a path is copied: spaces around it, and the quotes that a desktop puts there."""
        value = value.strip()
        return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value

    @field_validator("dataset")
    @classmethod
    def _version(cls, value: str) -> str:
        domain, _, number = value.partition("/v")
        if value and not (domain.isidentifier() and number.isdecimal()):
            raise ValueError(f"{value!r} is not <domain>/v<number>")
        return value

    @model_validator(mode="before")
    @classmethod
    def _current(cls, stored: object) -> object:
        return fields.with_current_names(stored) if isinstance(stored, Mapping) else stored

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.data.val_share + self.data.test_share > 0.7:
            raise ValueError("data.val_share + data.test_share leave less than 30% to train on")
        return self

    @model_validator(mode="after")
    def _few_shot(self) -> Self:
        given = {"tune.trials": self.tune.trials, "blend.points": self.blend.points, "train.lora_rank": self.train.lora_rank,
                 "objective.dimensions": self.objective.dimensions}  # fmt: skip
        if self.train.method == "few_shot" and (unused := [name for name, value in given.items() if value]):
            raise ValueError(f"train.method = few_shot has no use for {', '.join(unused)}: leave them out")
        return self

    @model_validator(mode="after")
    def _sizes_of_rules(self) -> Self:
        for rule in self.gate.rules:
            if isinstance(rule.size, int) and self.resolution.evaluate and rule.size not in self.resolution.evaluate:
                there = ", ".join(map(str, self.resolution.evaluate))
                raise ValueError(f"gate.rules: `{rule}`: resolution.evaluate has no {rule.size} px, only {there}")
        return self

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> "RunSpec":
        """A spec from dotted names; None and "" mean "not given". Raises ClipftError naming each wrong field."""
        given = {name: _typed(value) for name, value in fields.current(flat).items() if value is not None and value != ""}
        domain = given.get("domain", cls.model_fields["domain"].default)
        defaults = fields.current(get_domain(domain).defaults) if domain in domain_names() else {}
        chosen = {**defaults, **given}
        if fields.OPTIONS in defaults and fields.OPTIONS not in given:
            same = chosen.get("objective.name") == defaults.get("objective.name")
            chosen[fields.OPTIONS] = applicable(defaults[fields.OPTIONS], same, chosen.get("objective.auxiliary"))
        try:
            return cls.model_validate(fields.nest(chosen, SECTIONS))
        except ValidationError as error:
            why = "; ".join(map(_said, error.errors(include_url=False)))
            raise ClipftError("the run's spec", why, "Correct the named fields.", code="spec.invalid") from None

    def flat(self) -> dict[str, JsonValue]:
        """Every field by dotted name, as JSON values."""
        dump: dict[str, JsonValue] = self.model_dump(mode="json")
        return fields.flatten(dump, SECTIONS)

    def changed(self, values: Mapping[str, object]) -> "RunSpec":
        """The same with other values, by dotted name; `objective.options.NAME` sets one option. Raises ClipftError."""
        return RunSpec.from_flat({**self.flat(), **values})

    def settled(self, values: Mapping[str, object]) -> "RunSpec":
        """The same with values for the fields that it leaves open (null or empty), by dotted name. Raises ClipftError."""
        own = self.flat()
        left_open = {name: value for name, value in values.items() if own.get(name) in (None, [])}
        rate = left_open.get("train.learning_rate", self.train.learning_rate)
        factor = {"train.rate_factor": 1.0} if rate else {}  # it is in the rate, or does not count
        return self.changed(left_open | factor)

    @property
    def chooses_by_forgetting(self) -> bool:
        """Whether the general set has a say in which epoch, or which point of a blend, becomes the candidate."""
        return self.blend.points > 0 or self.train.max_forgetting < 1

    def identity(self, stage: str, *sections: str, **inputs: object) -> str:
        """The hash that a stage's work is known by: the named sections of the spec and the stage's inputs."""
        dump = fields.with_first_names(self.model_dump(mode="json"))
        content = {"stage": stage, **{s: dump[s] for s in sections}, "inputs": inputs}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _typed(value: object) -> object:
    """A list as it was meant: a text area, where people write a line each, may end with an empty one."""
    return value[:-1] if isinstance(value, list) and value[1:] and value[-1] == "" else value


def _said(error: ErrorDetails) -> str:
    """A wrong field in words."""
    name, said = ".".join(map(str, error["loc"])) or "spec", error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        near = get_close_matches(name, RunSpec().flat(), 1)
        said = "there is no such field" + (f"; did you mean {near[0]}?" if near else "")
    return f"{name}: {said}"
