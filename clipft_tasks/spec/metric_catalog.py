"""Every metric that an evaluation gives, in the order of a page. No torch: forms and gate rules read it.

Names in gate rules, the choices of `gate.metric`, the titles of reports and the table of docs/evaluation.md
(`python -m clipft_tasks.spec.metric_catalog` prints it) come from here. A metric of your own is a class (see
`clipft_tasks.evaluate.custom_metric`), known as `module:Class` or by an entry point of the group `clipft.metrics`.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points

from ..contracts.evaluation import MetricInfo

GROUP = "clipft.metrics"


def _of_rows(description: str, *, headline: bool = False) -> MetricInfo:
    """A share of rows: it has an interval."""
    return MetricInfo(description=description, interval=True, headline=headline)


def _labeled(description: str, *, interval: bool = False, headline: bool = False, better: bool = True) -> MetricInfo:
    return MetricInfo(description=description, higher_is_better=better, needs_labels=True, interval=interval, headline=headline)


def _unbounded(description: str, better: bool | None, low: float | None = 0.0, high: float | None = None) -> MetricInfo:
    return MetricInfo(description=description, higher_is_better=better, low=low, high=high)


METRICS: Mapping[str, MetricInfo] = {
    "balanced_accuracy": _labeled("mean recall over the classes, zero-shot", interval=True, headline=True),
    "accuracy": _labeled("share of images whose class is named right", interval=True, headline=True),
    "macro_f1": _labeled("mean over the classes of the harmonic mean of precision and recall", interval=True),
    "macro_auroc": _labeled("area under the ROC curve, one class against the rest, mean"),
    "macro_average_precision": _labeled("area under precision over recall, one class against the rest, mean"),
    "top3_accuracy": _labeled("the right class among the best three"),
    "top5_accuracy": _labeled("the right class among the best five"),
    "image_to_text_r1": _of_rows("images that find a caption of their own first", headline=True),
    "image_to_text_r5": _of_rows("… among the first five"),
    "image_to_text_r10": _of_rows("… among the first ten"),
    "image_to_text_median_rank": _unbounded("median place of an image's own caption", False, low=1.0),
    "text_to_image_r1": _of_rows("captions that find an image of their own first", headline=True),
    "text_to_image_r5": _of_rows("… among the first five"),
    "text_to_image_r10": _of_rows("… among the first ten"),
    "text_to_image_median_rank": _unbounded("median place of a caption's own image", False, low=1.0),
    "calibration_error": _labeled("mean distance of confidence from accuracy (ECE, 15 bins)", better=False),
    "temperature": _unbounded("of the model's softmax", None),
    "fitted_temperature": _unbounded("that the validation rows ask for, as the package has it", None),
    "fitted_calibration_error": _labeled("what is left of the error with it", better=False),
    "linear_probe_accuracy": _labeled("logistic regression on frozen image features"),
    "linear_probe_balanced_accuracy": _labeled("… mean recall over the classes"),
    "nearest_neighbors_accuracy": _labeled("vote of the 20 nearest training images"),
    "nearest_neighbors_balanced_accuracy": _labeled("… mean recall over the classes"),
    "modality_gap": _unbounded("distance between the mean image and the mean text", None, high=2.0),
    "alignment": _unbounded("mean squared distance of an image and its caption", False, high=4.0),
    "uniformity_image": _unbounded("how evenly images fill the sphere (log potential)", False, low=-8.0, high=0.0),
    "uniformity_text": _unbounded("how evenly captions do", False, low=-8.0, high=0.0),
    "milliseconds_per_image": _unbounded("in the image tower, median over batches, on the device of the evaluation", False),
    "general_score": MetricInfo(description="what the model still knows of everyday images"),
    "forgetting": _unbounded("general score of the start model minus the model's own", False, low=-1.0, high=1.0),
    "robustness": _unbounded("share of the score that is left under corruptions", True),
}
HEADLINES = tuple(name for name, info in METRICS.items() if info.headline)
INTERVALS = tuple(name for name, info in METRICS.items() if info.interval)


def is_custom(name: str) -> bool:
    """Whether a name is that of a metric from outside: `module:Class`, or an entry point. Nothing is imported."""
    return ":" in name or any(entry.name == name for entry in entry_points(group=GROUP))


def markdown() -> str:
    """The catalog as the table of docs/evaluation.md."""
    lines = ["| metric | what it is | better | range | needs labels | interval, paired test |", "|---|---|---|---|---|---|"]
    better = {True: "higher", False: "lower", None: ""}
    for name, info in METRICS.items():
        ends = " to ".join("…" if end is None else f"{end:g}" for end in (info.low, info.high))
        yes = ["yes" if flag else "" for flag in (info.needs_labels, info.interval)]
        title = f"**`{name}`**" if info.headline else f"`{name}`"
        lines.append(f"| {title} | {info.description} | {better[info.higher_is_better]} | {ends} | {yes[0]} | {yes[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
