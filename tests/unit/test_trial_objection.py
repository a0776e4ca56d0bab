"""What a trial on live traffic says against a version."""

import pytest

from clipft_tasks.contracts.serving import TrialLatency, TrialReport
from clipft_tasks.server.trial import objection
from clipft_tasks.spec import RolloutSpec

ASKED = RolloutSpec(requests=10, min_agreement=0.5, max_slowdown=2.0)


def report(**changes: object) -> TrialReport:
    given = {"domain": "general", "version": "2", "share": 0.5, "answers": False, "requests": 10, "images": 10, "errors": 0}
    latency = TrialLatency(champion=0.1, challenger=0.2)
    return TrialReport(**given | {"agreement": 0.5, "seconds_p95": latency} | changes)


@pytest.mark.parametrize(
    ("changes", "champion_p95", "said"),
    [
        ({}, None, ""),
        ({"agreement": None}, None, ""),
        ({"errors": 1}, None, "1 of 10 requests failed on it"),
        ({"agreement": 0.49}, None, "it names the champion's class for 49% of the images, at least 50% is asked"),
        ({"seconds_p95": TrialLatency(champion=0.1, challenger=0.21)}, None, "takes 0.21 s, the champion's 0.10 s"),
        ({"seconds_p95": TrialLatency(champion=None, challenger=0.21)}, 0.1, "takes 0.21 s, the champion's 0.10 s"),
        ({"seconds_p95": TrialLatency(champion=None, challenger=0.21)}, None, ""),
        ({"seconds_p95": TrialLatency(champion=0.1, challenger=None)}, None, ""),
    ],
)
def test_errors_disagreement_and_slowness_are_objections(changes, champion_p95, said):
    found = objection(report(**changes), ASKED, champion_p95)
    assert said in found and bool(found) == bool(said)
