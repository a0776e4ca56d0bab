"""A study as images: what was tried in which order, and which field mattered."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .trials import State, Trial, template_of

if TYPE_CHECKING:  # drawing loads it, looking for a study's trials does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {State.COMPLETE: ("o", "#1769aa"), State.PRUNED: ("v", "#8a94a0"), State.FAILED: ("x", "#b03030")}


def history(trials: Sequence[Trial], metric: str, winner: int) -> bytes:
    """PNG: the last score of every trial by number, the template's as a line, the best so far as steps.

    Args:
        winner: number of the trial whose values are taken.
    """
    from matplotlib.ticker import MaxNLocator

    fig, axes = _axes()
    last = {t.number: t.score if t.score is not None else next(reversed(t.epochs.values()), None) for t in trials if t.ended}
    for state, (marker, color) in MARKS.items():
        points = [(t.number, last[t.number]) for t in trials if t.state == state and last[t.number] is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=color, label=state, zorder=3)
    for number in (n for n, score in last.items() if score is None):  # failed before it had any
        axes.axvline(number, color=MARKS[State.FAILED][1], alpha=0.25, linewidth=1)
    complete = [t for t in trials if t.score is not None]
    if complete:
        best: list[float] = []
        for t in complete:
            best.append(max([t.score or 0.0, *best[-1:]]))
        axes.step([t.number for t in complete], best, where="post", color="#1769aa", alpha=0.5, label="best so far")
        template = template_of(complete)
        if template is not None:
            axes.axhline(template.score or 0.0, color="#b8860b", linestyle="--", linewidth=1, label="template")
        taken = next((t for t in complete if t.number == winner), None)
        if taken is not None:
            axes.annotate("taken", (taken.number, taken.score), xytext=(0, 9), textcoords="offset points", ha="center")
    axes.set(xlabel="trial", ylabel=f"{metric.replace('_', ' ')}, validation split", title=f"{len(last)} trials")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return _png(fig)


def importance(shares: Mapping[str, float]) -> bytes:
    """PNG: share of the score's variation that each field explains."""
    fig, axes = _axes()
    names = sorted(shares, key=lambda name: shares[name])
    bars = axes.barh(names, [shares[n] for n in names], color="#1769aa")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlabel="share of the variation explained (fANOVA)", xlim=(0, 1.1))
    return _png(fig)


def _axes() -> "tuple[Figure, Axes]":
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(figsize=(6.8, 4), dpi=140)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return fig, axes


def _png(fig: "Figure") -> bytes:
    from matplotlib import pyplot

    out = io.BytesIO()
    fig.tight_layout()
    fig.savefig(out, format="png")
    pyplot.close(fig)
    return out.getvalue()
