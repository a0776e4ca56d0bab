"""The names of all metrics, and the evaluation as a small table."""

from typing import Any

WHO = ("before", "champion", "after")  # the start model, what serves now, the candidate

# What each metric is, which way is better (1, -1; 0 neither), in the order of a page.
NAMES: dict[str, tuple[str, int]] = {
    "balanced_accuracy": ("mean recall over the classes, zero-shot", 1),
    "accuracy": ("share of images whose class is named right", 1),
    "macro_f1": ("mean over the classes of the harmonic mean of precision and recall", 1),
    "macro_auroc": ("area under the ROC curve, one class against the rest, mean", 1),
    "macro_average_precision": ("area under precision over recall, one class against the rest, mean", 1),
    "top3_accuracy": ("the right class among the best three", 1),
    "top5_accuracy": ("the right class among the best five", 1),
    "image_to_text_r1": ("images that find a caption of their own first", 1),
    "image_to_text_r5": ("… among the first five", 1),
    "image_to_text_r10": ("… among the first ten", 1),
    "image_to_text_median_rank": ("median place of an image's own caption", -1),
    "text_to_image_r1": ("captions that find an image of their own first", 1),
    "text_to_image_r5": ("… among the first five", 1),
    "text_to_image_r10": ("… among the first ten", 1),
    "text_to_image_median_rank": ("median place of a caption's own image", -1),
    "calibration_error": ("mean distance of confidence from accuracy (ECE, 15 bins)", -1),
    "temperature": ("of the model's softmax", 0),
    "fitted_temperature": ("that fits the validation rows best", 0),
    "fitted_calibration_error": ("what is left of the error with it", -1),
    "linear_probe_accuracy": ("logistic regression on frozen image features", 1),
    "linear_probe_balanced_accuracy": ("… mean recall over the classes", 1),
    "nearest_neighbors_accuracy": ("vote of the 20 nearest training images", 1),
    "nearest_neighbors_balanced_accuracy": ("… mean recall over the classes", 1),
    "modality_gap": ("distance between the mean image and the mean text", 0),
    "alignment": ("mean squared distance of an image and its caption", -1),
    "uniformity_image": ("how evenly images fill the sphere (log potential)", -1),
    "uniformity_text": ("how evenly captions do", -1),
    "milliseconds_per_image": ("in the image tower, median over batches, on the device of the evaluation", -1),
}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a resolution, one column a model, values with 95% intervals."""
    who = [w for w in WHO if any(w in r for r in results)]
    metric = results[0]["metric"]
    lines = [f"| {metric} at | " + " | ".join(who) + " | gain |", "|---|" + "---|" * (len(who) + 1)]
    for r in results:
        cells = [
            f"{r[w][metric]['value']:.3f} [{r[w][metric]['low']:.3f}, {r[w][metric]['high']:.3f}]" if w in r else ""
            for w in who
        ]
        gain = r.get("gain_over_champion") or r["gain_over_before"]
        lines.append(
            f"| {r['resolution']} px | "
            + " | ".join(cells)
            + f" | {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] |"
        )
    return "\n".join(lines)
