"""What came out of a run, as its note in every list of runs: "medical/v2 · 120 images", "medical: version 3 live · 0.37 → 1.00".

A listener, called by the scheduler when a run has ended, before it writes that down.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl
from clipft_notices import FAILED
from sqlalchemy.orm import object_session

from clipft_tasks.contracts.gate import GateVerdict

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session

MOST = 900  # characters; Airflow takes 1,000
log = logging.getLogger("clipft")
Results = Mapping[str, Any]  # what each task returned: JSON of its stage's record


@hookimpl
def on_dag_run_success(dag_run: "DagRun", msg: str) -> None:
    _note(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: "DagRun", msg: str) -> None:
    _note(dag_run)


def _note(dag_run: "DagRun") -> None:
    """Write the note, unless a person wrote one. A note that cannot be made is none: the scheduler goes on."""
    try:
        session = object_session(dag_run)
        if session is not None and dag_run.dag_id in NOTES and not dag_run.note:
            returned, errors = _said(dag_run, session)
            if text := sentence(dag_run.dag_id, returned, errors, str((dag_run.conf or {}).get("domain", ""))):
                dag_run.note = text[:MOST]
    except Exception as error:
        log.warning("No note for %s %s: %r", dag_run.dag_id, dag_run.run_id, error)


def _said(dag_run: "DagRun", session: "Session") -> tuple[dict[str, Any], dict[str, str]]:
    """What each task returned, and what ended those that failed."""
    from airflow.models.xcom import XComModel

    rows: list[Any] = list(session.execute(XComModel.get_many(run_id=dag_run.run_id, dag_ids=dag_run.dag_id)).scalars())
    read = {(row.key, row.task_id): XComModel.deserialize_value(row) for row in rows if row.map_index < 0}
    errors = {row.task_id: str(XComModel.deserialize_value(row)) for row in rows if row.key == FAILED}
    return {task: value for (key, task), value in read.items() if key == "return_value"}, errors


def sentence(dag: str, results: Results, errors: Mapping[str, str], domain: str = "") -> str:
    """What came out of a run, in one line that names its domain; "" where there is nothing to say."""
    text = "; ".join(f"{task}: {said}" for task, said in errors.items()) or NOTES[dag](results)
    return f"{domain}: {text}" if text and domain and domain not in text else text


def _dataset(results: Results) -> str:
    made = results.get("version")
    if not made:
        return ""
    suspects = (results.get("validate") or {}).get("suspects", 0)
    more = f" · {suspects:,} labels to look at: clipft review" if suspects else ""
    return f"{made['dataset']} · {made['rows']:,} images" + ("" if made["new"] else " · nothing new") + more


def _live(results: Results) -> str:
    verified = results.get("verify")
    if not verified:
        return "no version went live"
    gain = ""
    if "gate" in results:
        verdict = GateVerdict.from_json({k: v for k, v in results["gate"].items() if k in GateVerdict.model_fields})
        middle = sorted(verdict.scores)[len(verdict.scores) // 2]
        models = verdict.scores[middle]
        before = models.get("champion") or models["start"]
        gain = f" · {before.value:.2f} → {models['candidate'].value:.2f} {verdict.metric} at {middle} px"
    cost = (results.get("finetune") or {}).get("cost", "")
    return f"version {verified['version']} live{gain}{cost and f' · trained with {cost}'}"


def _readapt(results: Results) -> str:
    suggested, closed = results.get("suggest") or {}, results.get("close") or {}
    failed = f" at {', '.join(closed['failed'])}" if closed.get("failed") else ""
    parts = [suggested.get("kind", ""), suggested.get("action", ""), closed.get("outcome", "") + failed]
    if suspects := suggested.get("suspects", 0):
        parts.append(f"{suspects:,} labels to look at: clipft review")
    return " · ".join(part for part in parts if part)


def _watch(results: Results) -> str:
    if not results.get("watch"):
        return "nothing drifts now"
    domains = sorted({alert["domain"] for alert in results["watch"]})
    taken = [run["conf"]["domain"] for run in results.get("triage") or []]
    return f"{', '.join(domains)} drifts · " + (
        f"acted on: {', '.join(taken)}" if taken else "not acted on, the task triage says why"
    )


def _compare(results: Results) -> str:
    return str(next(iter((results.get("compare") or {}).get("summary", [])), ""))


def _retrain(results: Results) -> str:
    due = [run["conf"]["dataset"] for run in results.get("due") or []]
    return f"started for {', '.join(due)}" if due else "nothing to train on"


def _maintenance(results: Results) -> str:
    freed = sum((results.get("gc") or {}).get("freed", {}).values())
    made = results.get("backup") or {}
    done = [found["done"] for found in results.get("reconcile") or [] if found["done"]]
    gone = len(made.get("removed") or [])
    old = [f"{gone} old backup{'s' * (gone > 1)} removed"] if gone else []
    return " · ".join([f"backup of {made.get('bytes', 0) / 1e9:.2f} GB", *old, f"{freed / 1e9:.2f} GB freed", *done])


NOTES: dict[str, Callable[[Results], str]] = {
    "clipft_dataset": _dataset,
    "clipft_finetune": _live,
    "clipft_rollback": _live,
    "clipft_readapt": _readapt,
    "clipft_drift_watch": _watch,
    "clipft_compare": _compare,
    "clipft_retrain": _retrain,
    "clipft_maintenance": _maintenance,
}
