"""What a model package says of itself: where it comes from, what it was made for, how it compares."""

from typing import Any, ClassVar

from pydantic import JsonValue

from .base import Record, VersionedRecord
from .few_shot import FewShot


class Resolutions(Record):
    """Sides of square images, pixels: those of training, the one to serve at, those of the evaluation."""

    train: list[int]
    serve: int
    evaluated: list[int]


class Tokenizer(Record):
    """open_clip's class of the tokenizer, and how many tokens a text may have."""

    name: str
    context_length: int


class Blend(Record):
    """Where between its start model (0) and the fine-tuned one (1) a blended model's weights lie."""

    alpha: float
    reason: str
    parents: list[str]


class ModelCard(VersionedRecord):
    """The card of a model package. Its format is the package's: a newer one is refused by its number.

    Args:
        dataset, revision: tag and git commit of the dataset version that it was trained on.
        classes: names in the order of their ids; empty where nothing is classified.
        start: what training started from. augment: what was done to training images, by field of the domain; {} where it was
            not noted.
        objective, spec: as they were written by the release that trained; nothing here looks inside.
        similarity: how embeddings are compared, by its name in the menu.
        dimensions: lengths that embeddings may be cut to.
        few_shot: how the classes were fitted to a few images, where they were.
        run_id, key: MLflow run, and identity of the work.
    """

    WHAT: ClassVar[str] = "the model card"

    domain: str
    dataset: str
    revision: str
    license: str = ""
    classes: list[str]
    start: str
    augment: dict[str, float] = {}
    objective: dict[str, JsonValue] = {}
    spec: dict[str, JsonValue] = {}
    resolutions: Resolutions
    tokenizer: Tokenizer
    embed_dim: int
    similarity: str = "cosine"
    dimensions: list[int] = []
    run_id: str
    key: str
    blend: Blend | None = None
    few_shot: FewShot | None = None

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if not written:
            if "licence" in data:  # the spelling before formats were numbered
                data["license"] = data.pop("licence")
            data["dimensions"] = data.get("dimensions") or []
            data = {name: value for name, value in data.items() if name in cls.model_fields}
        return data
