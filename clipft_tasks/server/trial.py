"""Whether a version that was tried on live traffic may go on."""

from ..contracts.serving import TrialReport
from ..spec import RolloutSpec


def objection(report: TrialReport, asked: RolloutSpec, champion_p95: float | None = None) -> str:
    """What a trial says against a version; "" for nothing.

    Args:
        champion_p95: the champion's latency, should it have answered nothing itself during the trial.
    """
    if report.errors:
        return f"{report.errors} of {report.requests} requests failed on it"
    if report.agreement is not None and report.agreement < asked.min_agreement:
        share, least = f"{report.agreement:.0%}", f"{asked.min_agreement:.0%}"
        return f"it names the champion's class for {share} of the images, at least {least} is asked"
    slow, usual = report.seconds_p95.challenger, report.seconds_p95.champion or champion_p95
    if slow and usual and slow > asked.max_slowdown * usual:
        return f"one request in twenty takes {slow:.2f} s, the champion's {usual:.2f} s"
    return ""
