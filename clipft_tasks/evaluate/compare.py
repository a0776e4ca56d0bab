"""Models alongside one another: metrics, paired tests, what changed, what it cost."""

import datetime
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..contracts.comparison import (
    ChangedRow,
    Changes,
    ConfusionTable,
    CorrectedGain,
    DomainComparison,
    Measurement,
    ModelComparison,
    ModelLineage,
    PairedTest,
    StartGain,
    TrainingCost,
)
from ..contracts.evaluation import Confusion, EvaluationResult, of_groups
from . import bootstrap, cost, predictions
from . import metrics as m
from .predictions import Predictions

SHOWN_CLASSES = 12  # a larger confusion matrix is shown as its largest confusions
SURE = 0.05


@dataclass(frozen=True)
class Origin:
    """What a model's package says of where it comes from."""

    domain: str
    dataset: str
    revision: str
    start: str
    objective: str
    license: str
    run_id: str
    size: int  # that it is served at, pixels
    evaluated: tuple[int, ...]  # sizes


@dataclass(frozen=True)
class RunFacts:
    """What MLflow knows of a model's run by now.

    Attributes:
        tags: those of clipft, without that prefix.
        evaluations: the run's own, by image size.
        peak_gb: most memory that training took. watts: mean power of all GPUs, where their own meters were logged.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    evaluations: Mapping[int, EvaluationResult] = field(default_factory=dict)
    peak_gb: float | None = None
    watts: float | None = None
    link: str = ""


@dataclass
class Model:
    """One of the compared models.

    Attributes:
        name: as the report calls it.
        package: its folder on this machine.
        dataset: the version whose test rows it is asked about.
        rows: digest of those rows, their captions and the classes; models with the same one may be tested in pairs.
        predictions: what it said of each row, by image size.
        facts: empty where its run is gone.
    """

    name: str
    origin: Origin
    package: Path
    dataset: str
    rows: str
    classes: Sequence[str]
    predictions: dict[int, Predictions] = field(default_factory=dict)
    facts: RunFacts = RunFacts()

    @property
    def domain(self) -> str:
        """Models are tested against those of the same domain."""
        return self.origin.domain


@dataclass(frozen=True)
class Question:
    """What is asked of the models of a domain: the metric that is tested, and every metric that gets an interval."""

    metric: str
    names: Sequence[str]


def compare(
    models: Sequence[Model],
    questions: Mapping[str, Question],
    *,
    resamples: int,
    watts: float | None = None,
    problems: Sequence[str] = (),
) -> ModelComparison:
    """The comparison.

    Args:
        models: with `predictions` at the same sizes within a domain; the first of a domain is its baseline.
        questions: by domain.
        resamples: behind each interval and p value.
        watts: of the training device, for the energy estimate; None: assumed.
        problems: what could not be had.
    """
    groups = [_group(members, questions[domain], resamples) for domain, members in _by_domain(models).items()]
    groups, tests = _corrected(groups)
    return ModelComparison(
        models=[_lineage(model) for model in models],
        groups=groups,
        tests=tests,
        gains=[_start_gain(model) for model in models],
        parameters=differing({model.name: model.facts.params for model in models}),
        costs=[_cost(model, watts) for model in models],
        summary=[sentence for group in groups for sentence in _summary(group)],
        problems=list(problems),
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        resamples=resamples,
    )


def identity(models: Sequence[Model], questions: Mapping[str, Question], *, resamples: int, watts: float | None) -> str:
    """The hash that a comparison is known by."""
    asked = [[model.origin.run_id, model.rows, sorted(model.predictions)] for model in models]
    metrics = {domain: question.metric for domain, question in questions.items()}
    return hashlib.sha256(json.dumps([asked, metrics, resamples, watts]).encode()).hexdigest()[:16]


def _by_domain(models: Sequence[Model]) -> dict[str, list[Model]]:
    out: dict[str, list[Model]] = {}
    for model in models:
        out.setdefault(model.domain, []).append(model)
    return out


def _group(members: Sequence[Model], question: Question, resamples: int) -> DomainComparison:
    first = members[0]
    sizes = sorted(set.intersection(*(set(model.predictions) for model in members)))
    main = min(sizes, key=lambda size: abs(size - first.origin.size))
    metrics = {
        model.name: {size: _metrics(model.predictions[size], question.names, resamples) for size in sizes} for model in members
    }
    several = len(first.classes) > 1
    return DomainComparison(
        domain=first.domain,
        metric=question.metric,
        size=main,
        sizes=sizes,
        rows={model.name: len(model.predictions[main].truth) for model in members},
        datasets={model.name: model.dataset for model in members},
        metrics=metrics,
        recorded={model.name: _recorded(model, main, metrics[model.name][main]) for model in members},
        pairs=[_pair(a, b, question.metric, main, resamples) for a, b in itertools.combinations(members, 2)],
        confusion={model.name: confusion(model.predictions[main], model.classes) for model in members} if several else {},
        changes=[changes(first, other, main) for other in members[1:] if other.rows == first.rows and several],
    )


def _metrics(of: Predictions, names: Sequence[str], resamples: int) -> dict[str, Measurement]:
    """Every metric of a model at one size; those of `names` with their interval."""
    known = {name: Measurement(**dict(each)) for name, each in predictions.intervals(of, names, resamples).items()}
    values, _ = predictions.all_metrics(of)
    return known | {name: Measurement(value=value) for name, value in values.items() if name not in known}


def _recorded(model: Model, size: int, known: Mapping[str, Measurement]) -> dict[str, float]:
    """Metrics that only the run's own evaluation has (the general score, for example): of the size nearest to `size`."""
    found = model.facts.evaluations
    if not found:
        return {}
    values = found[min(found, key=lambda each: abs(each - size))].values("candidate")
    return {name: value for name, value in values.items() if name not in known}


def _pair(old: Model, new: Model, metric: str, size: int, resamples: int) -> PairedTest:
    """Paired, where both answered the same rows; p is not yet corrected."""
    if old.rows != new.rows:
        refused = f"different test rows: {old.dataset} and {new.dataset}"
        return PairedTest(old=old.name, new=new.name, metric=metric, size=size, refused=refused)
    gain = predictions.paired_gain(new.predictions[size], old.predictions[size], metric, resamples)
    return PairedTest(old=old.name, new=new.name, metric=metric, size=size, gain=CorrectedGain(**dict(gain), p_holm=gain.p))


def _corrected(groups: Sequence[DomainComparison]) -> tuple[list[DomainComparison], int]:
    """The groups with their p values corrected for all tests of all of them (Holm), and how many there are."""
    p_values = [pair.gain.p for group in groups for pair in group.pairs if pair.gain]
    corrected = iter(bootstrap.holm(p_values))

    def with_p(pair: PairedTest) -> PairedTest:
        if pair.gain is None:
            return pair
        return pair.model_copy(update={"gain": pair.gain.model_copy(update={"p_holm": next(corrected)})})

    return [g.model_copy(update={"pairs": [with_p(p) for p in g.pairs]}) for g in groups], len(p_values)


def confusion(of: Predictions, classes: Sequence[str]) -> ConfusionTable:
    """What is taken for what, of rows whose class is known."""
    known = of.truth >= 0
    every = m.confusion(of.truth[known], of.predicted[known], len(classes))
    counts, unanswered = every[:, :-1], int(every[:, -1:].sum())
    if len(classes) <= SHOWN_CLASSES:
        return ConfusionTable(classes=list(classes), unanswered=unanswered, counts=counts.toarray().tolist())
    cells = counts.tocoo()
    wrong = np.flatnonzero(cells.row != cells.col)
    wrong = wrong[np.argsort(-cells.data[wrong], kind="stable")][:SHOWN_CLASSES]
    largest = [
        Confusion(truth=classes[cells.row[i]], answer=classes[cells.col[i]], rows=int(cells.data[i])) for i in wrong.tolist()
    ]
    return ConfusionTable(classes=list(classes), unanswered=unanswered, largest=largest)


def changes(old: Model, new: Model, size: int) -> Changes:
    """Rows (of the shared test rows) that `new` names right and `old` did not, and the other way round."""
    a, b = old.predictions[size], new.predictions[size]
    known = a.truth >= 0
    was_right, is_right = known & (a.predicted == a.truth), known & (b.predicted == b.truth)

    def named(number: int) -> str:
        return new.classes[number] if number >= 0 else "no answer"

    def surest(mask: np.ndarray) -> list[int]:
        found = mask.nonzero()[0]
        return [int(i) for i in found[np.argsort(-b.margin[found], kind="stable")]]

    rows = {
        i: ChangedRow(truth=named(a.truth[i]), old=named(a.predicted[i]), new=named(b.predicted[i]))
        for i in (is_right != was_right).nonzero()[0].tolist()
    }
    fixed, broken = surest(is_right & ~was_right), surest(was_right & ~is_right)
    return Changes(old=old.name, new=new.name, fixed=fixed, broken=broken, rows=rows)


def differing(params: Mapping[str, Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Parameters that are not the same everywhere: name -> value by model, None where the run has none.

    Of the plan only what a person would ask about: what was measured differs a little every time.
    """
    asked = ("plan.device", "plan.precision", "plan.processes", "plan.micro_batch")
    given = [p for p in params.values() if p]
    names = sorted({n for p in given for n in p if not n.startswith("plan.") or n in asked})
    out = {name: [p.get(name) for p in params.values()] for name in names}
    return {name: values for name, values in out.items() if len({p.get(name) for p in given}) > 1}


def _cost(model: Model, watts: float | None) -> TrainingCost:
    facts = model.facts
    return cost.estimate(model.name, facts.params, facts.metrics, measured=facts.watts, peak_gb=facts.peak_gb, watts=watts)


def _start_gain(model: Model) -> StartGain:
    """Gain over the start model, as the run's own evaluation states it, at the size nearest to the one that it serves."""
    gain = StartGain(name=model.name, domain=model.domain, start=model.origin.start)
    usable = [size for size, result in model.facts.evaluations.items() if "start" in result.gains]
    if not usable:
        return gain
    found = model.facts.evaluations[min(usable, key=lambda size: abs(size - model.origin.size))]
    known = {"gain": found.gains["start"], "metric": found.metric, "size": found.size, "dataset": model.origin.dataset}
    return gain.model_copy(update=known)


def _lineage(model: Model) -> ModelLineage:
    origin, tags = model.origin, model.facts.tags
    return ModelLineage(
        name=model.name,
        domain=origin.domain,
        trained_on=origin.dataset,
        revision=origin.revision[:12],
        start=origin.start,
        objective=origin.objective,
        run_id=origin.run_id,
        dag_run=tags.get("dag_run", ""),
        gate=tags.get("gate", ""),
        license=origin.license,
        link=model.facts.link,
    )


def _summary(group: DomainComparison) -> list[str]:
    """What an operator wants to know first, a sentence a pair."""
    metric, out = group.metric.replace("_", " "), []
    for pair in group.pairs:
        names, gain = f"{pair.new} and {pair.old}", pair.gain
        if gain is None:
            out.append(f"{names}: no paired test ({pair.refused}).")
            continue
        if not np.isfinite(gain.value):
            out.append(f"{names}: {metric} cannot be computed on these rows.")
            continue
        value, low, high = (f"{100 * x:+.1f}" for x in (gain.value, gain.low, gain.high))
        behind = of_groups(gain.groups)
        points = f"{value} points of {metric} at {group.size} px [{low}, {high}]{' ' * bool(behind)}{behind}"
        if gain.p_holm <= SURE:
            better, worse = (pair.new, pair.old) if gain.value > 0 else (pair.old, pair.new)
            out.append(f"{better} is better than {worse}: {points}, p = {gain.p_holm:.3f}.")
        else:
            out.append(f"No difference beyond chance between {names}: {points}, p = {gain.p_holm:.2f}.")
    if not group.pairs:
        name, by_size = next(iter(group.metrics.items()))
        found = by_size[group.size][group.metric]
        out.append(
            f"{name}: {metric} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] {of_groups(found.groups)} at {group.size} px."
        )
    return out
