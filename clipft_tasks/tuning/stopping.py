"""When to stop, and what wins. Pure functions of what was tried."""

import math
from collections.abc import Sequence

from ..core.decision import Decision
from ..core.errors import ClipftError
from ..evaluate.bootstrap import interval_of_rows
from ..spec import TuneSpec
from ..spec.ranges import Value
from ..train.validation import ValidationRows, unpack
from .trials import TEMPLATE, State, Trial, best_of, template_of

RESAMPLES = 1000


def minutes_spent(trials: Sequence[Trial]) -> float:
    """Minutes of all trials."""
    return sum(t.seconds for t in trials) / 60


def reason_to_stop(trials: Sequence[Trial], tune: TuneSpec, points: float) -> str:
    """Why no further trial should begin; empty when one should.

    Args:
        points: how many different sets of values there are.
    """
    minutes = minutes_spent(trials)
    if minutes >= tune.minutes:
        return f"the budget of {tune.minutes:g} minutes is spent"
    ended = [t for t in trials if t.ended]
    template = template_of(ended)
    if template is None:
        return ""
    mean = minutes / len(ended)
    if minutes + mean / 2 > tune.minutes:
        return f"{tune.minutes - minutes:.1f} minutes are left of {tune.minutes:g}, and a trial takes {mean:.1f}"
    best = best_of(ended)
    if best is not None and best.score is not None and 1 - best.score <= tune.min_gain:
        who = f"trial {best.number}" if best.number else "the template"
        return f"{who} scores {best.score:.4f}: nothing could gain more than min_gain = {tune.min_gain:g} on it"
    whole = max(len(t.values) for t in ended)
    if len({tuple(sorted(t.values.items())) for t in ended if len(t.values) == whole}) >= points:
        return f"all {points:g} sets of values were tried"
    # The best so far, beginning with the template and what it takes to beat it.
    bar = (template.score + tune.min_gain) if template.score is not None else -math.inf
    since = 0
    for t in sorted(ended, key=lambda t: t.number):
        if t.number == TEMPLATE:
            continue
        if t.state == State.COMPLETE and t.score is not None and t.score > bar:
            bar, since = t.score, 0
        else:
            since += 1
    if tune.patience and since >= tune.patience:
        if template.score is not None and best is not None and (best.score or 0) - template.score <= tune.min_gain:
            return f"nothing is gained: {since} trials, none better than the template by more than {tune.min_gain:g}"
        return f"nothing more is gained: none of the last {since} trials was better than the best before"
    return ""


def decide(trials: Sequence[Trial], rows: ValidationRows, min_gain: float) -> Decision[dict[str, Value]]:
    """Whether the best trial's values are taken.

    They are when better than the template's on the same rows by more than `min_gain`, and surely so: the 95% interval of
    a paired test by group lies above zero. It has to, since the best of many trials is flattered by having been
    chosen on these very rows.

    Returns: the values to take ({} for the template's), the reason, and what was measured.
    Raises: ClipftError when every trial failed.
    """
    ended = [t for t in trials if t.ended]
    best = best_of(ended)
    template = template_of(trials)
    if ended and all(t.state == State.FAILED for t in ended):
        raise ClipftError(
            "tuning",
            f"every one of {len(ended)} trials failed; the first: {ended[0].reason}",
            "Correct the objective or its values.",
            code="tune.all_failed",
        )
    if best is None:
        return Decision({}, "no trial ended within the budget; the template's values stay")
    measured = {"best": best.score or 0.0, "trial": float(best.number)}
    if template is None or template.state != State.COMPLETE or template.score is None:
        if template is not None and template.state == State.FAILED:
            return Decision(
                best.values, f"the template's own values fail ({template.reason}); trial {best.number} is the best", measured
            )
        return Decision({}, "the template's own trial did not end, so nothing can be compared; its values stay", measured)
    measured |= {"template": template.score, "gain": (best.score or 0.0) - template.score}
    others = len([t for t in ended if t.number != TEMPLATE])
    if best.number == TEMPLATE:
        why = f"none of {others} other trials scored more than" if others else "no other trial was run to compare with"
        return Decision({}, f"{why} the template's {template.score:.4f}; its values stay", measured)
    new, old = (unpack(t.right, len(rows.truth)) for t in (best, template))
    low, high = interval_of_rows(lambda drawn: rows.score(new, drawn) - rows.score(old, drawn), rows.groups, RESAMPLES)
    measured |= {"gain_low": low, "gain_high": high}
    gained = f"trial {best.number} of {others} gains {measured['gain']:+.4f} [{low:+.4f}, {high:+.4f}] in {rows.metric}"
    if measured["gain"] <= min_gain:
        return Decision({}, f"{gained}, no more than min_gain = {min_gain:g}; the template's values stay", measured)
    if not low > 0:
        return Decision(
            {}, f"{gained}: within the noise of {len(rows.truth)} validation rows; the template's values stay", measured
        )
    return Decision(best.values, f"{gained} over the template's {template.score:.4f}", measured)
