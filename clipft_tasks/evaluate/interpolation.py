"""The path from a start model to the candidate: gain against forgetting at points of it, and which one to take."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..core.decision import Decision


@dataclass(frozen=True)
class Point:
    """A point of the path.

    Attributes:
        alpha: share of the way; 0 is the start model, 1 the candidate.
        score: of the domain, on the validation split, 0..1.
        general_score: of the general set, 0..1.
    """

    alpha: float
    score: float
    general_score: float


def rows(points: Sequence[Point]) -> list[dict[str, float]]:
    """The path as a table: alpha, score, general score, gain and forgotten (both beside the start model), by alpha."""
    start = points[0]
    return [asdict(p) | {"gain": p.score - start.score, "forgotten": start.general_score - p.general_score} for p in points]


def choose(points: Sequence[Point], min_gain: float, max_forgetting: float) -> Decision:
    """The alpha to take, and why.

    Of the points that keep at least `min_gain` of the whole gain at no more than `max_forgetting` of the whole forgetting, the
    one with the highest score; of equals, the one that forgot less. Where there is none, the best trade-off: of the points that
    forgot no more than the candidate, the one whose share of the gain is most above its share of the forgetting. The candidate
    stays where neither it nor a point within the budget gained anything.

    Args:
        points: by alpha, from 0 to 1.
    """
    path = rows(points)
    gain, forgotten = path[-1]["gain"], path[-1]["forgotten"]
    budget = max_forgetting * max(forgotten, 0.0)
    measured = {"gain": gain, "forgotten": forgotten}

    def told(row: dict[str, float]) -> str:
        kept = f"{row['gain'] / gain:.0%} of the gain" if gain > 0 else f"{row['gain']:+.4f} beside the start model"
        cost = f"{row['forgotten'] / forgotten:.0%} of the forgetting" if forgotten > 0 else "nothing forgotten"
        return f"{kept} at {cost}"

    def decision(row: dict[str, float], reason: str) -> Decision:
        return Decision(row["alpha"], reason, measured | {f"{k} at alpha": row[k] for k in ("gain", "forgotten")})

    better = [r for r in path if r["gain"] > 0]
    allowed = [r for r in better if r["gain"] >= min_gain * gain and r["forgotten"] <= budget]
    if allowed:
        best = max(allowed, key=lambda r: (r["gain"], -r["forgotten"], r["alpha"]))
        return decision(best, f"the best point within the budget: {told(best)}")
    if gain <= 0:
        return decision(path[-1], "the candidate gained nothing on the validation split, and neither did a point on the way")
    # Here something was forgotten: otherwise the candidate itself would be allowed.
    better = [r for r in better if r["forgotten"] <= forgotten]
    best = max(better, key=lambda r: (r["gain"] / gain - r["forgotten"] / forgotten, r["alpha"]))
    asked = f"{min_gain:.0%} of the gain at {max_forgetting:.0%} of the forgetting"
    return decision(best, f"no point keeps {asked}; the best trade-off is {told(best)}")


def table(path: Sequence[dict[str, float]], metric: str, alpha: float) -> str:
    """Markdown: a row a point; the chosen one is marked."""
    lines = [f"| alpha | {metric} | gain | general score | forgotten | |", "|---|---|---|---|---|---|"]
    for r in path:
        values = f"{r['score']:.4f} | {r['gain']:+.4f} | {r['general_score']:.4f} | {r['forgotten']:+.4f}"
        lines.append(f"| {r['alpha']:.2f} | {values} | {'taken' if r['alpha'] == alpha else ''} |")
    return "\n".join(lines)


def plot(path: Sequence[dict[str, float]], metric: str, alpha: float, form: str = "png") -> bytes:
    """The path as an image: general score to the right, the domain's score upwards.

    Args:
        form: `png` or `svg`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(figsize=(6.4, 4), dpi=140)
    across, up = [r["general_score"] for r in path], [r["score"] for r in path]
    axes.plot(across, up, marker="o", color="#1769aa", zorder=1)
    for r in path:
        taken = r["alpha"] == alpha
        if taken:
            axes.scatter(
                r["general_score"], r["score"], s=140, facecolors="none", edgecolors="#b8860b", linewidths=2.5, zorder=2
            )
        if taken or r["alpha"] in (0, 1):
            name = "start" if r["alpha"] == 0 else "candidate" if r["alpha"] == 1 else f"alpha {r['alpha']:.2f}"
            axes.annotate(name, (r["general_score"], r["score"]), xytext=(7, 7), textcoords="offset points", fontsize=9)
    axes.set(xlabel="general score", ylabel=f"{metric.replace('_', ' ')}, validation", title="From start to candidate")
    axes.margins(0.15)
    axes.grid(alpha=0.25)
    fig.tight_layout()
    out = io.BytesIO()
    fig.savefig(out, format=form)
    pyplot.close(fig)
    return out.getvalue()
