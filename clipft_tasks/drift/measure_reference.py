"""Measuring a reference: baseline, ranges, and the limit of each signal from windows that are simulated on its own rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..contracts.drift import BaselineAccuracy
from ..core.proportions import wilson
from ..model.group_quantile import can_cover, effective_groups, group_quantile
from ..model.held_out import HeldOut
from .reference import ExpectedRange, ImageRows, NoveltyLimit, Reference, ReferenceFacts, Sample
from .signals import SampleComparison, Signal, measure, signals
from .statistics import Array, calibrated_temperature, median_distance, one_thread, unit

ROWS = 512  # of images, at most
WINDOW = 64  # rows of the windows that limits are measured with; larger ones vary less
CHANCE, GROUPED = 200, 200  # simulated windows
MARGIN = 1.3  # over the largest statistic that chance reached
FALSE_ALARMS = 0.05  # share of the model's own kind of images that may be taken for another
GROUP_ROWS = 10  # below which a group's own share of false alarms is chance
SMALLEST_DISTANCE = 1e-4  # of the limit, where all rows are one image
TYPICAL = 0.93  # share of such halves that differ by less than the limit


def sample_rows(groups: Sequence[str], most: int = ROWS, seed: int = 0) -> np.ndarray:
    """Row numbers of a sample that takes from every group in turn, so that none dominates."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    turn: dict[str, int] = {}
    rank = np.zeros(len(groups), dtype=int)
    for i in order:
        group = groups[i] or f"row {i}"
        rank[i] = turn[group] = turn.get(group, -1) + 1
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def measure_reference(
    rows: ImageRows,
    *,
    text: Array,
    groups: Sequence[str],
    classes: Sequence[str],
    held_out: HeldOut,
    scale: float,
    weights: str,
    tolerance: float = 1.0,
    paired: Array | None = None,
    images: Sequence[str] = (),
) -> Reference:
    """Make a reference.

    Args:
        rows: images of the training and validation splits, in the model's space, at the size that is served.
        text: embeddings of their captions.
        groups: of each row; "" where a row stands for itself.
        held_out: validation rows, what baseline accuracy, calibration and the limit of novelty come from.
        scale: the model's learned inverse temperature.
        weights: digest of the model's weights.
        tolerance: the domain's factor on every limit.
        paired: similarity (n,) of each image with its own caption.
        images: sha256 of each, so that a report can show what the reference was made from.
    """
    labeled = held_out.labeled
    near = rows.image @ rows.image.T - 2 * np.eye(len(rows))
    low, high = rows.appearance.min(axis=0), rows.appearance.max(axis=0)
    slack = 0.1 * (high - low) + 0.05
    facts = ReferenceFacts(
        format=ReferenceFacts.FORMAT,
        weights=weights,
        classes=list(classes),
        rows=len(rows),
        groups=len(np.unique(_named(groups))),
        images=list(images),
        kernel_width=median_distance(rows.image),
        text_kernel_width=median_distance(text),
        novelty_scale=max(1e-4, float(np.quantile(1 - near.max(axis=1), 0.99))),
        expected_range=ExpectedRange(low=(low - slack).tolist(), high=(high + slack).tolist()),
        novelty_limit=novelty_limit(rows.image, groups, held_out),
        baseline=_baseline(labeled.similarity, labeled.truth),
        temperature=calibrated_temperature(labeled.similarity, labeled.truth) if len(labeled) else 1 / scale,
        limits={},
    )
    paired = np.zeros(0, np.float32) if paired is None else paired
    with one_thread():
        limits = _limits(Reference(rows, text, facts, paired), groups)
    facts = facts.model_copy(update={"limits": {name: tolerance * limit for name, limit in limits.items()}})
    return Reference(rows, text, facts, paired)


def novelty_limit(sample: Array, groups: Sequence[str], held_out: HeldOut) -> NoveltyLimit | None:
    """From how far off an image is none of the model's; None without validation rows.

    A row is compared with the images of other groups, as a new image will be. The limit is that of the validation rows or of the sample,
    whichever is farther: training rows lie closer together than new ones, so alone they would give too low a limit, but three
    validation groups may by chance be much alike. Where the validation groups do not vouch for the rate of false alarms it is an estimate.

    Args:
        sample, groups: the reference's images (m, d), and the group of each; "" where an image stands for itself.
    """
    names = _named(groups)

    def to_other_groups(image: Array, own: np.ndarray) -> tuple[Array, np.ndarray]:
        """Distance of rows to the nearest image of another group, and their groups; rows without any are left out."""
        near = image @ sample.T
        near[own[:, None] == names] = -np.inf
        known = np.isfinite(near).any(axis=1)
        return 1 - near[known].max(axis=1, initial=-np.inf), own[known]

    distance, of_rows = to_other_groups(unit(held_out.image), held_out.groups)
    if not len(distance):
        return None
    found = [group_quantile(*rows, 1 - FALSE_ALARMS) for rows in ((distance, of_rows), to_other_groups(sample, names))]
    limit = max([SMALLEST_DISTANCE, *(each if each is not None else float(distance.max()) for each in found)])
    _, group, sizes = np.unique(of_rows, return_inverse=True, return_counts=True)
    beyond = np.bincount(group, distance > limit) / sizes
    return NoveltyLimit(
        distance=limit,
        false_alarms=FALSE_ALARMS if can_cover(of_rows, 1 - FALSE_ALARMS) else None,
        most_of_group=float(max(beyond[sizes >= GROUP_ROWS], default=0.0)),
        rows=len(distance),
        groups=effective_groups(of_rows),
    )


def _named(groups: Sequence[str]) -> np.ndarray:
    """The same groups, with a name for each row that stands for itself."""
    return np.array([g or f"row {i}" for i, g in enumerate(groups)], dtype=str)


def _baseline(similarity: Array, truth: Array) -> BaselineAccuracy:
    right = int((similarity.argmax(axis=1) == truth).sum()) if len(truth) else 0
    low, high = wilson(right, len(truth))
    return BaselineAccuracy(value=right / len(truth) if len(truth) else 0.0, low=low, high=high, rows=len(truth))


def _limits(reference: Reference, groups: Sequence[str]) -> dict[str, float]:
    """The limit of each signal, from simulated windows: rows drawn by chance, and halves of the groups."""
    simulated = [s for s in signals().values() if s.fixed_limit is None and s.applies(reference)]
    of_rows = [s for s in simulated if s.rows in ("images", "pairs")]
    of_texts = [s for s in simulated if s.rows == "texts"]
    rows, text, rng = reference.rows, reference.text, np.random.default_rng(0)
    names = _named(groups)
    every = np.unique(names)
    size = min(WINDOW, max(2, len(rows) // 4))

    def simulate(inside: np.ndarray) -> dict[str, float]:
        window, rest = rng.permutation(np.flatnonzero(inside))[:size], np.flatnonzero(~inside)
        return _statistics(of_rows, SampleComparison(reference, _part(reference, rest), _part(reference, window)))

    def chance() -> np.ndarray:
        inside = np.zeros(len(rows), dtype=bool)
        inside[rng.permutation(len(rows))[:size]] = True
        return inside

    by_chance = [simulate(chance()) for _ in range(CHANCE)]
    limits = {name: MARGIN * max(w[name] for w in by_chance) for name in _in_all(by_chance)}
    if 4 <= len(every) < len(rows):
        halves = [np.isin(names, rng.permutation(every)[: len(every) // 2]) for _ in range(GROUPED)]
        grouped = [simulate(h) for h in halves if 2 <= h.sum() < len(rows)]
        for name in limits.keys() & _in_all(grouped):
            limits[name] = max(limits[name], float(np.quantile([w[name] for w in grouped], TYPICAL)))
    if of_texts:
        draws = [text[rng.integers(0, len(text), min(WINDOW, len(text)))] for _ in range(CHANCE)]
        none = rows.take(np.arange(0))
        windows = [Sample(none, drawn, reference.paired[:0]) for drawn in draws]
        drawn = [_statistics(of_texts, SampleComparison(reference, reference.sample, window)) for window in windows]
        limits |= {name: MARGIN * max(w[name] for w in drawn) for name in _in_all(drawn)}
    return {s.name: max(float(limits[s.name]), s.smallest_limit) for s in simulated if s.name in limits}


def _statistics(measured: Sequence[Signal], samples: SampleComparison) -> dict[str, float]:
    return {signal.name: found.value for signal in measured if (found := measure(signal, samples)) is not None}


def _in_all(windows: Sequence[Mapping[str, float]]) -> list[str]:
    """The signals that were measured in every window."""
    return [name for name in windows[0] if all(name in window for window in windows)] if windows else []


def _part(reference: Reference, rows: np.ndarray) -> Sample:
    """Some of the reference's images, with their pairs."""
    paired = reference.paired
    return Sample(reference.rows.take(rows), reference.text, paired[rows] if len(paired) else paired)
