"""The evaluation report: one self-contained HTML page. Whether to approve stands at its top, everything behind it below."""

import datetime
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from .. import tracking
from ..contracts.evaluation import ROLES, ErrorAnalysis, EvaluationResult, ModelErrors, Robustness, Role, of_groups
from ..contracts.gate import GateVerdict
from ..spec.metric_catalog import METRICS
from . import artifacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES: Mapping[Role, str] = {"start": "start model", "champion": "champion", "candidate": "candidate"}
COLORS: Mapping[Role, str] = {
    "start": "#7d8792",
    "champion": "#b8860b",
    "candidate": "#2f81c4",
}  # readable on white and on black
INK = "#123456"  # stands for the page's own color while matplotlib draws
MATRIX = 12  # classes, above which the most frequent confusions are listed instead


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        results: one an image size.
        errors: by size; sizes may be missing.
        main: the size that is looked at closely.
        facts: what stands under the title, by name.
    """

    title: str
    results: Sequence[EvaluationResult]
    errors: Mapping[int, ErrorAnalysis]
    verdict: GateVerdict
    main: int
    facts: Mapping[str, str]


def of_run(run_id: str, results: Sequence[EvaluationResult], verdict: GateVerdict, size: int) -> str:
    """The page of a candidate's run, from what its evaluations left there.

    Args:
        size: that the model was trained for; the evaluated one nearest to it is looked at closely.
    """
    errors = {r.size: found for r in results if (found := artifacts.load_errors(run_id, r.size))}
    main = min((r.size for r in results), key=lambda each: abs(each - size))
    tags = tracking.client().get_run(run_id).data.tags
    facts = {
        "dataset": tags.get("clipft.dataset", ""),
        "from": tags.get("clipft.start", ""),
        "license": errors[main].license if main in errors else "",
        "run": run_id,
    }
    return page(Report(f"Evaluation: {tags.get('clipft.domain', '')}", results, errors, verdict, main, facts))


def page(report: Report) -> str:
    """The report as HTML with everything inside."""
    results = sorted(report.results, key=lambda r: r.size)
    chosen = next(r for r in results if r.size == report.main)
    roles = chosen.roles
    errors = report.errors.get(report.main)
    models = errors.models if errors else {}
    candidate = models.get("candidate", ModelErrors())
    robustness = {role: found for role in roles if (found := chosen.models[role].robustness)}
    infos = {**METRICS, **chosen.described}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "of_groups": of_groups,
        "number": _number,
        "signed": lambda x: "–" if x is None else f"{x:+.3f}",
        "p": _p,
    }
    return environment.get_template("report.html.j2").render(
        title=report.title,
        facts=report.facts,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=report.verdict,
        main=report.main,
        result=chosen,
        results=results,
        metric=chosen.metric,
        roles=roles,
        titles=TITLES,
        opponent=chosen.opponent_role,
        gain=chosen.gain,
        infos=infos,
        metrics=[n for n in infos if any(n in m.intervals or n in m.metrics for m in chosen.models.values())],
        absent=sorted({(name, why) for m in chosen.models.values() for name, why in m.absent.items()}),
        curve=_drawn(lambda axes: _curve(axes, results, chosen.metric)) if len(results) > 1 else "",
        reliability=_drawn(lambda axes: _reliability(axes, models)) if any(m.reliability for m in models.values()) else "",
        robustness=robustness,
        robustness_curve=_drawn(lambda axes: _robustness(axes, robustness)) if robustness else "",
        classes=_classes(models, errors.train_rows if errors else {}),
        matrix=_matrix(candidate, errors.classes if errors else []),
        confusions=[c for c in candidate.confusion if c.truth != c.answer][:20],
        mistakes=errors.mistakes if errors else [],
    )


def _number(value: float | None) -> str:
    """A number as a person reads it: three digits that matter, and none that do not."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}" if value >= 0.001 else "<0.001"


@dataclass(frozen=True)
class ClassRow:
    """A class with test rows: rows here and in training, recall by model, the candidate's precision."""

    name: str
    rows: int
    trained: int
    recall: Mapping[Role, float | None]
    precision: float | None


def _classes(models: Mapping[Role, ModelErrors], trained: Mapping[str, int]) -> list[ClassRow]:
    recalls = {role: {c.name: c.recall for c in errors.classes} for role, errors in models.items()}
    return [
        ClassRow(c.name, c.rows, trained.get(c.name, 0), {r: known.get(c.name) for r, known in recalls.items()}, c.precision)
        for c in models.get("candidate", ModelErrors()).classes
        if c.rows
    ]


def _matrix(errors: ModelErrors, names: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Rows of the confusion matrix as (class, [(count, share of the row)]); empty where there are too many classes."""
    pairs = {(c.truth, c.answer): c.rows for c in errors.confusion}
    if not pairs or len(names) > MATRIX:
        return []
    columns = [*names, *([""] if any(not answer for _, answer in pairs) else [])]
    counts = [[pairs.get((truth, answer), 0) for answer in columns] for truth in names]
    return [(truth, [(n, n / max(1, sum(row))) for n in row]) for truth, row in zip(names, counts, strict=True)]


# Plots ----------------------------------------------------------------------------------------------------------------


def _drawn(plot: Callable[["Axes"], None]) -> Markup:
    """An inline SVG whose lines and words take the page's color."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context():
        matplotlib.rc("text", color=INK)
        matplotlib.rc("xtick", color=INK)
        matplotlib.rc("ytick", color=INK)
        matplotlib.rc("grid", color=INK)
        matplotlib.rc("axes", edgecolor=INK, labelcolor=INK)
        matplotlib.rc("svg", fonttype="none", hashsalt="report")
        matplotlib.rc("font", size=9, family="sans-serif")
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


def _curve(axes: "Axes", results: Sequence[EvaluationResult], metric: str) -> None:
    for role in ROLES:
        rows = [r for r in results if role in r.models]
        if rows:
            found = [r.models[role].intervals[metric] for r in rows]
            spread = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
            sizes, values = [r.size for r in rows], [f.value for f in found]
            axes.errorbar(sizes, values, yerr=spread, marker="o", capsize=3, color=COLORS[role], label=TITLES[role])
    axes.set(xlabel="image size, pixels", ylabel=metric.replace("_", " "), ylim=(0, 1.02))
    axes.set_xticks([r.size for r in results])
    axes.legend(frameon=False)


def _reliability(axes: "Axes", models: Mapping[Role, ModelErrors]) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linestyle=":")
    for role in ROLES:
        bins = models[role].reliability if role in models else []
        if not bins:
            continue
        most = max(b.rows for b in bins)
        x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
        axes.plot(x, y, color=COLORS[role], label=TITLES[role])
        axes.scatter(x, y, s=[8 + 60 * b.rows / most for b in bins], color=COLORS[role])
    axes.set(xlabel="how sure the model is", ylabel="how often it is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False)


def _robustness(axes: "Axes", robustness: Mapping[Role, Robustness]) -> None:
    for role, found in robustness.items():
        levels = [[found.clean] * len(found.corruptions), *zip(*found.corruptions.values(), strict=True)]
        means = [sum(level) / max(1, len(level)) for level in levels]
        axes.plot(range(len(means)), means, marker="o", color=COLORS[role], label=TITLES[role])
    axes.set(xlabel="severity (0: as they are)", ylabel="mean over corruptions", ylim=(0, 1.02))
    axes.set_xticks(range(len(means)))
    axes.legend(frameon=False)
