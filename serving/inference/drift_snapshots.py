"""What windows say, as the record that crosses HTTP: one replica's, and several of one version added up."""

from collections.abc import Iterable

from clipft_tasks.contracts.drift import BaselineAccuracy, DriftSnapshot, WindowRows, WorstSignal
from clipft_tasks.drift.window import DriftMetrics, pooled


def snapshot(domain: str, version: str, metrics: DriftMetrics, baseline: BaselineAccuracy) -> DriftSnapshot:
    """A window's metrics as a record."""
    signal, ratio = metrics.worst
    return DriftSnapshot(
        domain=domain,
        version=version,
        images=metrics.images,
        texts=metrics.texts,
        feedback=metrics.feedback,
        pairs=metrics.pairs,
        rows=metrics.rows,
        drift=metrics.drift,
        values=metrics.values,
        baseline=baseline,
        worst=WorstSignal(signal=signal, ratio=ratio),
    )


def merge_snapshots(own: DriftSnapshot, others: Iterable[DriftSnapshot]) -> DriftSnapshot:
    """This replica's snapshot and those of others, as one; a replica that answers with another version is left out."""
    same = [own, *(other for other in others if other.version == own.version)]
    metrics = [DriftMetrics(s.drift, s.values, s.images, s.texts, s.feedback, s.rows, s.pairs) for s in same]
    return snapshot(own.domain, own.version, pooled(metrics), own.baseline)


def merge_rows(windows: Iterable[WindowRows]) -> WindowRows:
    """The images of several replicas' windows."""
    windows = list(windows)
    return WindowRows(
        appearance=[row for window in windows for row in window.appearance],
        similarity=[row for window in windows for row in window.similarity],
    )
