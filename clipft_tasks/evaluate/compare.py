"""Models beside one another: metrics, paired tests, what changed, what it cost; as JSON and as one self-contained page."""

import datetime
import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..spec.gate_rules import METRICS
from . import bootstrap, zero_shot
from .zero_shot import Scored

COLORS = ("#1769aa", "#d9682b", "#2e8b57", "#8a5cc2", "#b8860b", "#c2185b", "#00838f", "#6d7682")
DASHES = ("", "7 4", "2 4", "9 3 2 3")
SHOWN_CLASSES = 12  # a larger confusion matrix is shown as its largest confusions
SHOWN_IMAGES = 8  # of each direction
SURE = 0.05
# Watts of a training device under load, where its own meter was not logged: assumptions, and shown as such.
POWER = {"cpu": 65.0, "mps": 40.0, "cuda": 400.0}


@dataclass
class Model:
    """One of the compared models.

    Attributes:
        name: as the report calls it.
        card: of its package: domain, dataset, start, objective, resolutions.
        package: its folder on this machine.
        dataset: the version whose test rows it was scored on.
        rows: digest of those rows, their captions and the classes; models with the same one may be tested in pairs.
        scored: what it said of each row, by image side.
        facts: what MLflow knows of its run: params, metrics, tags, recorded (its own evaluation by side), link; {} when gone.
    """

    name: str
    card: Mapping[str, Any]
    package: Path
    dataset: str
    rows: str
    classes: list[str]
    scored: dict[int, Scored] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        return str(self.card["domain"])


def content(
    models: Sequence[Model],
    metrics: Mapping[str, str],
    names: Mapping[str, list[str]],
    resamples: int,
    watts: float | None = None,
) -> dict[str, Any]:
    """The comparison, as JSON.

    Args:
        models: with `scored` filled at the same sides within a domain; the first of a domain is its baseline.
        metrics: the metric that decides, by domain.
        names: every metric to state, by domain.
        resamples: behind each interval and p value.
        watts: of the training device, for the energy estimate; None: assumed.
    Returns: groups (one a domain: metrics, pairs, confusion, changes), gains over the start, parameters that differ, cost,
        lineage, and `said`: the sentences to read first.
    """
    groups = []
    for domain, members in _by_domain(models).items():
        sides = sorted(set.intersection(*(set(m.scored) for m in members)))
        serve = int(members[0].card["resolutions"]["serve"])
        groups.append(_group(domain, members, metrics[domain], names[domain], sides, serve, resamples))
    tested = [pair for group in groups for pair in group["pairs"] if "p" in pair]
    for pair, corrected in zip(tested, bootstrap.holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = corrected
    return {
        "models": [_lineage(m) for m in models],
        "groups": groups,
        "tests": len(tested),
        "gains": [_gain(m, metrics[m.domain]) for m in models],
        "parameters": differing({m.name: m.facts.get("params", {}) for m in models}),
        "cost": [{"name": m.name, **cost(m.facts, watts)} for m in models],
        "said": [sentence for group in groups for sentence in _say(group)],
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "resamples": resamples,
    }


def _by_domain(models: Sequence[Model]) -> dict[str, list[Model]]:
    out: dict[str, list[Model]] = {}
    for model in models:
        out.setdefault(model.domain, []).append(model)
    return out


def _group(
    domain: str, members: list[Model], metric: str, names: list[str], sides: list[int], serve: int, resamples: int
) -> dict[str, Any]:
    main = min(sides, key=lambda side: abs(side - serve))
    metrics = {m.name: {str(s): _metrics(m.scored[s], names, resamples) for s in sides} for m in members}
    return {
        "domain": domain,
        "metric": metric,
        "size": main,
        "sizes": sides,
        "rows": {m.name: len(m.scored[main].truth) for m in members},
        "datasets": {m.name: m.dataset for m in members},
        "metrics": metrics,
        "recorded": {m.name: _recorded(m, main, metrics[m.name][str(main)]) for m in members},
        "pairs": [_pair(a, b, metric, main, resamples) for a, b in itertools.combinations(members, 2)],
        "confusion": {m.name: confusion(m.scored[main], m.classes) for m in members} if len(members[0].classes) > 1 else {},
        "changes": [
            changes(members[0], other, main)
            for other in members[1:]
            if other.rows == members[0].rows and len(other.classes) > 1
        ],
    }


def _metrics(scored: Scored, names: list[str], resamples: int) -> dict[str, dict[str, float]]:
    """Every metric of a model at one size; those of `names` with their interval."""
    with_interval = zero_shot.summary(scored, names, resamples)
    rest, _ = zero_shot.all_metrics(scored)
    return with_interval | {name: {"value": value} for name, value in rest.items() if name not in with_interval}


def _recorded(model: Model, side: int, names: Container[str]) -> dict[str, Any]:
    """Metrics that only the run's own evaluation has (the general score, for example): of the side nearest to `side`."""
    recorded = model.facts.get("recorded") or {}
    if not recorded:
        return {}
    nearest = recorded[min(recorded, key=lambda s: abs(int(s) - side))]
    return {k: v for k, v in nearest["after"].items() if k not in names and isinstance(v, Mapping) and "value" in v}


def _pair(a: Model, b: Model, metric: str, side: int, resamples: int) -> dict[str, Any]:
    """b minus a in the deciding metric: paired, where both answered the same rows."""
    out: dict[str, Any] = {"from": a.name, "to": b.name, "metric": metric, "size": side}
    if a.rows != b.rows:
        return out | {"refused": f"different test rows: {a.dataset} and {b.dataset}"}
    return out | zero_shot.difference(b.scored[side], a.scored[side], metric, resamples)


def confusion(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    """Counts by truth (rows) and answer (columns), of rows whose class is known; many classes: the largest confusions."""
    known = scored.truth >= 0
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    truth, predicted = scored.truth[known], scored.predicted[known]
    answered = predicted >= 0
    np.add.at(counts, (truth[answered], predicted[answered]), 1)
    out: dict[str, Any] = {"classes": list(classes), "unanswered": int((~answered).sum())}
    if len(classes) <= SHOWN_CLASSES:
        return out | {"counts": counts.tolist()}
    wrong = counts - np.diag(np.diag(counts))
    largest = np.argsort(-wrong, axis=None)[:SHOWN_CLASSES]
    cells = [divmod(int(i), len(classes)) for i in largest if wrong.flat[i]]
    return out | {"largest": [[classes[t], classes[p], int(wrong[t, p])] for t, p in cells]}


def changes(old: Model, new: Model, side: int) -> dict[str, Any]:
    """Rows (of the shared test rows) that `new` names right and `old` did not, and the other way round; its surest first.

    Returns: from, to, mended and broken (row numbers), rows (of each such row: truth, old and new answer).
    """
    a, b = old.scored[side], new.scored[side]
    known = a.truth >= 0
    right = {m: known & (s.predicted == s.truth) for m, s in (("old", a), ("new", b))}

    def named(number: int) -> str:
        return new.classes[number] if number >= 0 else "no answer"

    def surest(mask: np.ndarray) -> list[int]:
        found = mask.nonzero()[0]
        return [int(i) for i in found[np.argsort(-b.margin[found], kind="stable")]]

    rows = {
        str(i): {"truth": named(a.truth[i]), "old": named(a.predicted[i]), "new": named(b.predicted[i])}
        for i in (right["new"] != right["old"]).nonzero()[0].tolist()
    }
    mended, broken = surest(right["new"] & ~right["old"]), surest(right["old"] & ~right["new"])
    return {"from": old.name, "to": new.name, "mended": mended, "broken": broken, "rows": rows}


def differing(params: Mapping[str, Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Parameters that are not the same everywhere: name -> value by model, None where the run has none.

    Of the plan only what a person would ask about: what was probed differs a little every time.
    """
    asked = ("plan.device", "plan.precision", "plan.processes", "plan.micro_batch")
    given = [p for p in params.values() if p]
    names = sorted({n for p in given for n in p if not n.startswith("plan.") or n in asked})
    out = {name: [p.get(name) for p in params.values()] for name in names}
    return {name: values for name, values in out.items() if len({p.get(name) for p in given}) > 1}


def cost(facts: Mapping[str, Any], watts: float | None = None) -> dict[str, Any]:
    """What training took, as far as its run says: device, pairs, seconds, memory_gb (peak), energy_wh and `assumed` (how)."""
    metrics, params = facts.get("metrics", {}), facts.get("params", {})
    out: dict[str, Any] = {"device": params.get("plan.device"), "pairs": metrics.get("pairs")}
    out |= {"seconds": None, "memory_gb": facts.get("peak_gb"), "energy_wh": None, "assumed": ""}
    pace = metrics.get("pairs_per_second")
    if not pace or not out["pairs"]:
        return out
    out["seconds"] = out["pairs"] / pace
    processes = int(params.get("plan.processes") or 1)
    metered = facts.get("watts")  # of all GPUs together
    device = out["device"] or "cpu"
    if watts is None and metered:
        power, out["assumed"] = metered, f"mean of the GPU's own meter, {metered:.0f} W"
    else:
        each = watts if watts is not None else POWER.get(device, POWER["cpu"])
        power = each * processes
        how = "as given" if watts is not None else f"assumed for {device}"
        out["assumed"] = f"{each:.0f} W {how}" + (f", {processes} devices" if processes > 1 else "")
    out["energy_wh"] = power * out["seconds"] / 3600
    return out


def _gain(model: Model, metric: str) -> dict[str, Any]:
    """Gain over the start model, as the run's own evaluation states it; without metrics where it has none."""
    out = {"name": model.name, "domain": model.domain, "start": model.card.get("start", ""), "metric": metric}
    recorded = model.facts.get("recorded") or {}
    serve = int(model.card["resolutions"]["serve"])
    usable = [int(s) for s, r in recorded.items() if r.get("gain_over_before")]
    if not usable:
        return out
    side = min(usable, key=lambda s: abs(s - serve))
    found = recorded[str(side)]
    return out | {"metric": found["metric"], "size": side, "dataset": model.card["dataset"], **found["gain_over_before"]}


def _lineage(model: Model) -> dict[str, Any]:
    objective = model.card.get("objective") or {}
    tags = model.facts.get("tags", {})
    return {
        "name": model.name,
        "domain": model.domain,
        "trained_on": model.card.get("dataset", ""),
        "revision": str(model.card.get("revision", ""))[:12],
        "start": model.card.get("start", ""),
        "objective": objective.get("name", ""),
        "run_id": model.card.get("run_id", ""),
        "dag_run": tags.get("clipft.dag_run", ""),
        "gate": tags.get("clipft.gate", ""),
        "license": model.card.get("license", ""),
        "link": model.facts.get("link", ""),
    }


def _say(group: Mapping[str, Any]) -> list[str]:
    """What an operator wants to know first, a sentence a pair."""
    metric, out = group["metric"].replace("_", " "), []
    for pair in group["pairs"]:
        names = f"{pair['to']} and {pair['from']}"
        if "refused" in pair:
            out.append(f"{names}: no paired test ({pair['refused']}).")
            continue
        if not np.isfinite(pair["value"]):
            out.append(f"{names}: {metric} cannot be computed on these rows.")
            continue
        gain = f"{100 * pair['value']:+.1f} points of {metric} at {group['size']} px [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"
        p = pair.get("p_holm", float("nan"))
        if p <= SURE:
            better, worse = (pair["to"], pair["from"]) if pair["value"] > 0 else (pair["from"], pair["to"])
            out.append(f"{better} is better than {worse}: {gain}, p = {p:.3f}.")
        else:
            out.append(f"No difference beyond chance between {names}: {gain}, p = {p:.2f}.")
    if not group["pairs"]:
        name, by_size = next(iter(group["metrics"].items()))
        value = by_size[str(group["size"])][group["metric"]]
        out.append(f"{name}: {metric} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] at {group['size']} px.")
    return out


# The page ------------------------------------------------------------------------------------------------------------


def curve(group: Mapping[str, Any], width: int = 560, height: int = 250) -> dict[str, Any]:
    """Coordinates of the metric over image size: one line a model with its intervals, and the axes."""
    metric, sizes = group["metric"], group["sizes"]
    found = {name: [by_size[str(s)][metric] for s in sizes] for name, by_size in group["metrics"].items()}
    ends = np.array([[f["low"], f["high"], f["value"]] for values in found.values() for f in values], dtype=float)
    ends = ends[np.isfinite(ends)]
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / s <= 5)
    low, high = step * np.floor(low / step), step * np.ceil(high / step) if high > low else low + step
    high = high if high > low else low + step
    left, right, top, bottom = 52, width - 24, 12, height - 34
    first, last = sizes[0], sizes[-1]

    def x(size: float) -> float:
        return (left + right) / 2 if first == last else left + (right - left) * (size - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    lines = []
    for i, (name, values) in enumerate(found.items()):
        shift = 3.0 * (i - (len(found) - 1) / 2)  # intervals of several models must not hide one another
        points = [
            {"x": x(s) + shift, "y": y(f["value"]), "low": y(f["low"]), "high": y(f["high"]), "label": f"{f['value']:.3f}"}
            for s, f in zip(sizes, values, strict=True)
            if np.isfinite([f["value"], f["low"], f["high"]]).all()
        ]
        lines.append({"name": name, "points": points})
    ticks = [(y(v), f"{v:.2f}") for v in np.arange(low, high + step / 2, step)]
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "bottom": bottom,
        "x_ticks": [(x(s), s) for s in sizes],
        "y_ticks": ticks,
        "lines": lines,
    }


def page(found: Mapping[str, Any], images: Mapping[str, Sequence[Mapping[str, Any]]], problems: Sequence[str]) -> str:
    """The report as HTML with everything inside: no request leaves the page.

    Args:
        found: from `content`.
        images: by `from→to→kind`: src (data URI), truth, old and new answers.
        problems: what could not be had.
    """
    import jinja2

    template = Path(__file__).with_name("compare.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cell": _cell, "duration": _duration, "words": lambda text: str(text).replace("_", " ")}
    environment.globals["metrics"] = METRICS
    names = [m["name"] for m in found["models"]]
    style = {name: {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)]} for i, name in enumerate(names)}
    return environment.from_string(template).render(
        found=found,
        names=names,
        style=style,
        curves=[curve(group) for group in found["groups"]],
        images=images,
        problems=problems,
        sure=SURE,
    )


def _cell(value: Any, form: str = "%.3f") -> str:
    """A number for a table, a dash for none."""
    return "–" if value is None or value != value else form % value


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
