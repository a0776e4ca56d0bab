"""What the clipft server answers, as JSON over HTTP. About drift and captured images see `drift`; what it is asked is in
`serving.inference.schemas`."""

from pydantic import ConfigDict, Field

from .base import Record


class Answer(Record):
    """What a server says. A client reads the fields that it knows and ignores those that a newer release added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


# Inference --------------------------------------------------------------------------------------------------------


class Embeddings(Answer):
    embeddings: list[list[float]] = Field(description="one an item, in the order asked: what the model's similarity compares")
    dimension: int


class Heatmap(Answer):
    """Which places of an image speak for a text."""

    text: str = Field(description="the text or class that it is about, beside the other ones of the request or model")
    grid: list[list[float]] = Field(description="rows of places, from the top left: from -1, against the text, to 1, for it")
    box: tuple[float, float, float, float] = Field(
        description="left, top, right and bottom of what the grid covers, as shares of the image's width and height; a model that "
        "pads images to squares sees more than there is: less than 0, and more than 1"
    )


class Embedding(Answer):
    object: str = "embedding"
    index: int
    embedding: list[float] | list[int] | str = Field(description="as `encoding_format` says")


class Usage(Answer):
    prompt_tokens: int = Field(description="of the texts, by the model's tokenizer, cut ones in full; images have none")
    total_tokens: int


class EmbeddingList(Answer):
    """Embeddings as OpenAI's clients read them."""

    object: str = "list"
    data: list[Embedding] = Field(description="in the order asked")
    model: str = Field(description="domain and version, `industrial@3`: embeddings of two versions are not to be compared")
    usage: Usage


class Similarities(Answer):
    similarity: list[list[float]] = Field(
        description="one row an image, one column a text; which similarity it is, `/v1/models` says"
    )
    heatmaps: list[list[Heatmap]] | None = Field(None, description="likewise, where `explain` asked for them")


class Prediction(Answer):
    label: str
    probability: float = Field(description="of the label; whether it is calibrated, `calibrated` of the answer says")
    scores: dict[str, float] = Field(description="similarity by class")
    probabilities: dict[str, float] = Field({}, description="softmax of the similarities: probability by class")
    prediction_set: list[str] | None = Field(
        None,
        description="classes, the likeliest first, of which the true one is one at the answer's `coverage`; null: no such claim",
    )
    none_of_these: bool | None = Field(
        None, description="whether the image is of another kind than those that the model was made for; null: it cannot tell"
    )
    novelty: float | None = Field(None, description="how far it is from those, over the limit: above 1 it is none of these")
    heatmap: Heatmap | None = Field(None, description="where the model looked for the label, where `explain` asked for it")


class Predictions(Answer):
    predictions: list[Prediction]
    calibrated: bool = Field(
        False, description="whether a probability is how often such answers are right, as measured on held-out images"
    )
    coverage: float | None = Field(
        None, description="share of images, also of new groups, whose true class is in `prediction_set`; null: no sets"
    )
    false_alarms: float | None = Field(
        None, description="share of the model's own kind of images that are taken for none of these; null: it cannot tell"
    )
    reasons: list[str] = Field([], description="why something of this is missing, in words; empty when nothing is")


# Models -----------------------------------------------------------------------------------------------------------


class TowerBackend(Answer):
    backend: str = Field(description="what runs the tower: torch, openvino, onnx")
    why: str
    measured: dict[str, float] = Field({}, description="what was measured for the choice, with its unit")


class ModelInfo(Answer):
    id: str = Field("", description="what a request for embeddings may say as `model`: the domain")
    object: str = "model"
    created: int = Field(0, description="when it was loaded, seconds since 1970")
    owned_by: str = "clipft"
    domain: str
    version: str
    since: float
    side: int = Field(description="image side in pixels")
    classes: list[str]
    similarity: str = Field(description="how its embeddings are compared: cosine (unit vectors), dot, euclidean, hyperbolic, …")
    dimensions: list[int] = Field(description="lengths that embeddings may be cut to; none unless it was trained for them")
    lineage: dict[str, str]
    backends: dict[str, TowerBackend] = Field({}, description="what runs the `image` and the `text` tower")


class ModelList(Answer):
    """The live models, as OpenAI's clients read them; each says more than they ask."""

    object: str = "list"
    data: list[ModelInfo]


class LoadResult(Answer):
    version: str
    replaced: str | None
    load_seconds: float
    disagreement: float = Field(description="largest difference from the answers recorded at training")
    replicas: dict[str, str] = Field({}, description="the other replicas: the version that is live there now, or away")


class ReplicaState(Answer):
    address: str = Field(description="empty: the one that answers")
    live: dict[str, str] = Field(description="the live version of each domain")
    problem: str = Field(description="what it cannot do at the moment, or that it does not answer")


# Trials on live traffic -------------------------------------------------------------------------------------------


class TrialLatency(Answer):
    """95th percentile of the seconds that an answer took; null while there was none."""

    champion: float | None
    challenger: float | None


class TrialReport(Answer):
    domain: str
    version: str
    share: float
    answers: bool
    requests: int
    images: int
    agreement: float | None = Field(description="share of images on which both named the same class")
    errors: int
    seconds_p95: TrialLatency


class TrialEnd(Answer):
    ended: bool = Field(description="false when there was no trial")


# Feedback and captures --------------------------------------------------------------------------------------


class FeedbackResult(Answer):
    predicted: str
    version: str
    counted: bool = Field(description="false when this image was judged before")


class RememberedAnswer(Answer):
    domain: str
    version: str
    labels: list[str] = Field(description="what was said of each image")


class CaptureShare(Answer):
    domain: str
    share: float | None
    before: float | None = Field(description="the share that was set so far; null for none")


class CaptureLabel(Answer):
    id: str
    label: str


class DeletedCaptures(Answer):
    deleted: int


# Health -----------------------------------------------------------------------------------------------------------


class Liveness(Answer):
    status: str


class Readiness(Answer):
    ready: bool
    live: dict[str, str] = Field(description="the live version of each domain")
    held: dict[str, str] = Field({}, description="versions that somebody holds live, whatever the registry's champion is")
    device: str
    problem: str = Field(description="why the registry could not be followed; empty for nothing")
