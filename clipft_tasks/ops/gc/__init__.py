"""What may go, and why: nothing that a registered version, its data, its start model or running work needs.

Runs. A registered version keeps its run, and whatever that run's tags and parameters name (start model, the candidate that it was
blended from), and so on. A run that says it is running is left alone. What else ended long ago and is no version's goes, with its
model and artifacts.
Work in progress. Work folders and staged rows go by the time that has passed since anything in them was written (a running task
writes a checkpoint every few seconds), caches by the time since they were last read: both can be made or fetched again.
Data-set versions, the DVC remote, tuning studies and backups are never touched.
"""

from dataclasses import dataclass, field

from ...core.errors import ClipftError, TransientError
from .. import databases
from ..installation import maintenance_lock
from .airflow import Activity, Logs, Metadata, StackLog
from .files import BroughtSources, Captures, DecodedImages, Described, DvcCache, Models, Shards, Staging, Work
from .mlflow import Runs
from .report import DAY, Collector, Item, Policy, Report

__all__ = ["DAY", "Cleared", "Collector", "Item", "Policy", "Report", "clear", "collectors", "find"]


def collectors(policy: Policy) -> list[Collector]:
    """Everything that looks for garbage, in the order of the report."""
    activity = Activity()
    return [
        Runs(policy.runs, policy.deleted),
        Work(policy.work),
        Staging(policy.work),
        DecodedImages(policy.caches, activity),
        Described(policy.caches, activity),
        Models(policy.caches, activity),
        Shards(policy.caches, activity),
        BroughtSources(policy.caches, activity),
        DvcCache(policy.caches, activity),
        Captures(policy.captures),
        Logs(policy.logs),
        StackLog(),
        Metadata(policy.metadata),
    ]


def find(policy: Policy | None = None) -> Report:
    """Look at everything; change nothing."""
    report = Report()
    for collector in collectors(policy or Policy.of_environment()):
        try:
            report += collector.find()
        except (TransientError, OSError) as error:
            report += Report(skipped=[f"{collector.title}: {error}"])
    return report


@dataclass
class Cleared:
    """What came of a removal: bytes that came back and things removed, by kind, and what could not be removed."""

    freed: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def clear(report: Report) -> Cleared:
    """Remove what `find` found. Raises ClipftError while another backup, restore, gc or upgrade runs."""
    done = Cleared()
    with maintenance_lock("gc"):
        for item in report.items:
            try:
                done.freed[item.kind] = done.freed.get(item.kind, 0) + item.remove()
                done.removed[item.kind] = done.removed.get(item.kind, 0) + 1
            except (OSError, ClipftError, TransientError) as error:
                done.failed.append(f"{item.what}: {error}")
        if done.removed.keys() & {"runs", "metadata"}:
            done.freed["databases"] = sum(database.shrink() for database in databases.all_databases())
    return done
