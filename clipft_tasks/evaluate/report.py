"""The evaluation report: one self-contained HTML page. Whether to approve stands at its top, everything behind it below."""

import datetime
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from ..spec.metric_catalog import NAMES, WHO

TITLES = {"before": "start model", "champion": "champion", "after": "candidate"}
COLORS = {"before": "#7d8792", "champion": "#b8860b", "after": "#2f81c4"}  # readable on white and on black
INK = "#123456"  # stands for the page's own color while matplotlib draws
MATRIX = 12  # classes, above which the most frequent confusions are listed instead


def page(
    title: str,
    results: Sequence[Mapping[str, Any]],
    details: Mapping[int, Mapping[str, Any]],
    verdict: Mapping[str, Any],
    main: int,
    facts: Mapping[str, str],
) -> str:
    """The page.

    Args:
        results: of the stage evaluate, one an image size.
        details: `evaluation/<size>-details.json` by size; sizes may be missing.
        verdict: of the gate: passed, metric, opponent, rules.
        main: the size that is looked at closely.
        facts: what stands under the title, by name.
    """
    results = sorted(results, key=lambda r: r["resolution"])
    chosen = next(r for r in results if r["resolution"] == main)
    who = [w for w in WHO if w in chosen]
    opponent = "champion" if "champion" in chosen else "before"
    shown = details.get(main) or {}
    models = shown.get("models", {})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": lambda x: "–" if x is None else f"{x:+.3f}", "p": _p}
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=verdict,
        main=main,
        result=chosen,
        results=results,
        metric=chosen["metric"],
        who=who,
        titles=TITLES,
        opponent=opponent,
        gain=chosen[f"gain_over_{opponent}"],
        names=NAMES,
        metrics=[n for n in NAMES if any(n in chosen[w] or n in chosen["metrics"][w] for w in who)],
        absent=sorted({(name, why) for w in who for name, why in chosen["absent"][w].items()}),
        curve=_drawn(lambda axes: _curve(axes, results, chosen["metric"])) if len(results) > 1 else "",
        reliability=_drawn(lambda axes: _reliability(axes, models, who)) if _has_reliability(models) else "",
        robustness=_drawn(lambda axes: _robustness(axes, chosen["robustness"], who)) if chosen["robustness"] else "",
        classes=_classes(models, who, shown.get("train_rows", {})),
        matrix=_matrix(models.get("after", {}), shown.get("names", [])),
        confusions=[c for c in models.get("after", {}).get("confusion", []) if c["truth"] != c["answer"]][:20],
        mistakes=shown.get("mistakes", []),
    )


def _number(value: Any) -> str:
    """A number as a person reads it: three digits that matter, and none that do not."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}" if value >= 0.001 else "<0.001"


def _classes(models: Mapping[str, Any], who: Sequence[str], trained: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row a class with test rows: rows here and in training, recall by model, the candidate's precision."""
    by_who = {w: {c["class"]: c for c in models.get(w, {}).get("classes", [])} for w in who}
    return [
        c | {"trained": trained.get(name, 0), "by": {w: by_who[w].get(name, {}).get("recall") for w in who}}
        for name, c in by_who.get("after", {}).items()
        if c["rows"]
    ]


def _matrix(model: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Rows of the confusion matrix as (class, [(count, share of the row)]); empty where there are too many classes."""
    pairs = {(c["truth"], c["answer"]): c["rows"] for c in model.get("confusion", [])}
    if not pairs or len(names) > MATRIX:
        return []
    columns = [*names, *([""] if any(not answer for _, answer in pairs) else [])]
    counts = [[pairs.get((truth, answer), 0) for answer in columns] for truth in names]
    return [(truth, [(n, n / max(1, sum(row))) for n in row]) for truth, row in zip(names, counts, strict=True)]


# Plots ----------------------------------------------------------------------------------------------------------------


def _drawn(plot: Callable[[Any], None]) -> Markup:
    """An inline SVG whose lines and words take the page's color."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = dict.fromkeys(names, INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        fig, axes = pyplot.subplots(figsize=(5.2, 3.1))
        plot(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(alpha=0.18)
        fig.tight_layout()
        out = io.StringIO()
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(fig)
    text = out.getvalue()
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))


def _has_reliability(models: Mapping[str, Any]) -> bool:
    return any(model.get("reliability") for model in models.values())


def _curve(axes: Any, results: Sequence[Mapping[str, Any]], metric: str) -> None:
    for who in WHO:
        rows = [r for r in results if who in r]
        if rows:
            found = [r[who][metric] for r in rows]
            spread = [[f["value"] - f["low"] for f in found], [f["high"] - f["value"] for f in found]]
            sides, values = [r["resolution"] for r in rows], [f["value"] for f in found]
            axes.errorbar(sides, values, yerr=spread, marker="o", capsize=3, color=COLORS[who], label=TITLES[who])
    axes.set(xlabel="image side, pixels", ylabel=metric.replace("_", " "), ylim=(0, 1.02))
    axes.set_xticks([r["resolution"] for r in results])
    axes.legend(frameon=False)


def _reliability(axes: Any, models: Mapping[str, Any], who: Sequence[str]) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linestyle=":")
    for w in who:
        bins = models.get(w, {}).get("reliability", [])
        most = max((b["rows"] for b in bins), default=1)
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        axes.plot(x, y, color=COLORS[w], label=TITLES[w])
        axes.scatter(x, y, s=[8 + 60 * b["rows"] / most for b in bins], color=COLORS[w])
    axes.set(xlabel="how sure the model is", ylabel="how often it is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False)


def _robustness(axes: Any, robustness: Mapping[str, Any], who: Sequence[str]) -> None:
    for w in who:
        found = robustness[w]
        levels = [[found["clean"]] * len(found["corruptions"]), *zip(*found["corruptions"].values(), strict=True)]
        means = [sum(level) / max(1, len(level)) for level in levels]
        axes.plot(range(len(means)), means, marker="o", color=COLORS[w], label=TITLES[w])
    axes.set(xlabel="severity (0: as they are)", ylabel="mean over corruptions", ylim=(0, 1.02))
    axes.set_xticks(range(len(means)))
    axes.legend(frameon=False)
