"""What the numbers of an evaluation say in words, and what would help: for whoever reads that a gate rule failed."""

from collections.abc import Sequence

from ..contracts.evaluation import EvaluationResult, of_groups
from ..contracts.gate import RuleResult
from ..spec import RunSpec

COLLAPSED = 0.95  # share of answers that are one class, from which on a model names it for all
EXCESS = 0.2  # more than the class's share of the rows
RANKS, RANKS_NOT = 0.7, 0.55  # macro AUROC that is well above chance, and that is not
FEW = 20  # groups
NEAR_PERFECT = 0.98
DOUBTED, DOUBTED_ROWS = 0.4, 5  # of the errors, from which on labels look wrong: models that are merely weak stay below a third


def advice(result: EvaluationResult, rules: Sequence[RuleResult], spec: RunSpec) -> list[str]:
    """What stands out in the evaluation at the size that counts, the most telling first.

    Args:
        rules: with their verdict; what concerns only failures is said where one fails.
    """
    failed = [rule for rule in rules if not rule.passed]
    found = [
        _collapsed(result, spec),
        _doubted_labels(result, failed, spec),
        _too_few(result, failed),
        _nothing_to_gain(result, failed),
        _forgotten(failed),
    ]
    return [sentence for sentence in found if sentence]


def _collapsed(result: EvaluationResult, spec: RunSpec) -> str:
    """A model that names one class for nearly all images, and whether it ranks them all the same."""
    answers = result.candidate.answers
    if not answers or answers.share < COLLAPSED or answers.share < answers.expected + EXCESS:
        return ""
    if not answers.commonest:
        return "The candidate's scores are not numbers: training went astray. Lower `train.learning_rate`."
    what = f"The candidate calls {answers.share:.0%} of the images {answers.commonest!r} ({answers.expected:.0%} are)"
    now, before = (result.models[role].metrics.get("macro_auroc") for role in ("candidate", "start"))
    if now is None:
        return f"{what}."
    was = "" if before is None else f", the start model's was {before:.2f}"
    if now >= RANKS:
        epochs = f"`train.epochs` is {spec.train.epochs}"
        return (
            f"{what}, though it ranks them well (macro AUROC {now:.2f}{was}): it has begun to tell the classes apart and not "
            f"learned where one ends. Train longer ({epochs}), or with more rows."
        )
    if now <= RANKS_NOT:
        return f"{what}, and ranks them no better than chance (macro AUROC {now:.2f}{was}). Look at the labels and the images."
    return f"{what}, and ranks them a little better than chance (macro AUROC {now:.2f}{was}). Train longer, or with more rows."


def _doubted_labels(result: EvaluationResult, failed: Sequence[RuleResult], spec: RunSpec) -> str:
    """Errors of which many may be the labels'."""
    labels = result.labels
    if not failed or labels is None or labels.doubted < DOUBTED_ROWS or labels.doubted < DOUBTED * labels.errors:
        return ""
    return (
        f"Labels may be wrong: of {labels.errors} test rows that the candidate gets wrong, {labels.doubted} look as if their label were, "
        f"to both models alike. Look at such rows before you train more: `clipft review {spec.dataset or f'{spec.domain}/v…'}`."
    )


def _too_few(result: EvaluationResult, failed: Sequence[RuleResult]) -> str:
    """A gain that the test rows cannot tell from none."""
    gain = result.gain
    if not failed or not gain.groups or not gain.low <= 0 <= gain.high:
        return ""
    over = f"version {result.opponent}" if result.opponent else "the start model"
    what = f"The gain over {over}, {gain.value:+.3f} {gain.ends('+.3f')}, cannot be told from none"
    if gain.groups < FEW and gain.groups < result.rows:
        return (
            f"{what}: {result.rows} test rows {of_groups(gain.groups)} (patients, modules, days) are too few to tell. "
            f"Add rows of other groups, or raise `data.test_share` before the first version."
        )
    return f"{what} with {result.rows} test rows {of_groups(gain.groups)}."


def _nothing_to_gain(result: EvaluationResult, failed: Sequence[RuleResult]) -> str:
    """An opponent that is right about nearly all."""
    found = result.models[result.opponent_role].intervals.get(result.metric)
    if not failed or found is None or not found.value >= NEAR_PERFECT:
        return ""
    return f"The opponent's {result.metric} is {found.value:.3f} already: these test rows leave hardly anything to gain."


def _forgotten(failed: Sequence[RuleResult]) -> str:
    """A rule about forgetting that failed."""
    if not any("forgetting" in rule.rule or "general_score" in rule.rule for rule in failed):
        return ""
    return (
        "The candidate forgot too much of everyday images: add `distillation` to `objective.auxiliary`, or set `blend.points`."
    )
