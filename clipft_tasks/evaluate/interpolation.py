"""The line from a start model to the candidate: gain against forgetting at points of it, and which one to take."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from ..contracts.interpolation import CurvePoint
from ..core.decision import Decision


@dataclass(frozen=True)
class Point:
    """What was measured at a point; see `CurvePoint`."""

    alpha: float
    score: float
    general_score: float


def curve(points: Sequence[Point]) -> list[CurvePoint]:
    """The points with what each gained and forgot compared with the first, the start model."""
    start = points[0]
    return [
        CurvePoint(
            alpha=p.alpha,
            score=p.score,
            general_score=p.general_score,
            gain=p.score - start.score,
            forgotten=start.general_score - p.general_score,
        )
        for p in points
    ]


def choose(points: Sequence[CurvePoint], min_gain: float, max_forgetting: float) -> Decision[float]:
    """The alpha to take, and why.

    Of the points that keep at least `min_gain` of the whole gain at no more than `max_forgetting` of the whole forgetting, the
    one with the highest score; of equals, the one that forgot less. Where there is none, the best trade-off: of the points that
    forgot no more than the candidate, the one whose share of the gain is most above its share of the forgetting. The candidate
    stays where neither it nor a point within the budget gained anything.

    Args:
        points: by alpha, from 0 to 1.
    """
    candidate = points[-1]
    gain, forgotten = candidate.gain, candidate.forgotten
    budget = max_forgetting * max(forgotten, 0.0)
    measured = {"gain": gain, "forgotten": forgotten}

    def described(p: CurvePoint) -> str:
        kept = f"{p.gain / gain:.0%} of the gain" if gain > 0 else f"{p.gain:+.4f} compared with the start model"
        cost = f"{p.forgotten / forgotten:.0%} of the forgetting" if forgotten > 0 else "nothing forgotten"
        return f"{kept} at {cost}"

    def decision(p: CurvePoint, reason: str) -> Decision[float]:
        return Decision(p.alpha, reason, measured | {"gain at alpha": p.gain, "forgotten at alpha": p.forgotten})

    better = [p for p in points if p.gain > 0]
    allowed = [p for p in better if p.gain >= min_gain * gain and p.forgotten <= budget]
    if allowed:
        best = max(allowed, key=lambda p: (p.gain, -p.forgotten, p.alpha))
        return decision(best, f"the best point within the budget: {described(best)}")
    if gain <= 0:
        return decision(candidate, "the candidate gained nothing on the validation split, and neither did a point on the way")
    # Here something was forgotten: otherwise the candidate itself would be allowed.
    better = [p for p in better if p.forgotten <= forgotten]
    best = max(better, key=lambda p: (p.gain / gain - p.forgotten / forgotten, p.alpha))
    asked = f"{min_gain:.0%} of the gain at {max_forgetting:.0%} of the forgetting"
    return decision(best, f"no point keeps {asked}; the best trade-off is {described(best)}")


def table(points: Sequence[CurvePoint], metric: str, alpha: float) -> str:
    """Markdown: a row a point; the chosen one is marked."""
    lines = [f"| alpha | {metric} | gain | general score | forgotten | |", "|---|---|---|---|---|---|"]
    for p in points:
        values = f"{p.score:.4f} | {p.gain:+.4f} | {p.general_score:.4f} | {p.forgotten:+.4f}"
        lines.append(f"| {p.alpha:.2f} | {values} | {'taken' if p.alpha == alpha else ''} |")
    return "\n".join(lines)


def plot(points: Sequence[CurvePoint], metric: str, alpha: float, form: str = "png") -> bytes:
    """The line as an image: general score to the right, the domain's score upwards.

    Args:
        form: `png` or `svg`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(figsize=(6.4, 4), dpi=140)
    axes.plot([p.general_score for p in points], [p.score for p in points], marker="o", color="#1769aa", zorder=1)
    for p in points:
        at, taken = (p.general_score, p.score), p.alpha == alpha
        if taken:
            axes.scatter(*at, s=140, facecolors="none", edgecolors="#b8860b", linewidths=2.5, zorder=2)
        if taken or p.alpha in (0, 1):
            name = "start" if p.alpha == 0 else "candidate" if p.alpha == 1 else f"alpha {p.alpha:.2f}"
            axes.annotate(name, at, xytext=(7, 7), textcoords="offset points", fontsize=9)
    axes.set(xlabel="general score", ylabel=f"{metric.replace('_', ' ')}, validation", title="From start to candidate")
    axes.margins(0.15)
    axes.grid(alpha=0.25)
    fig.tight_layout()
    out = io.BytesIO()
    fig.savefig(out, format=form)
    pyplot.close(fig)
    return out.getvalue()
