"""DAG runs, which are struck and watched to their end, and the report of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from uuid import uuid4

from ...core.console import say
from ...core.errors import ClipftError, TransientError
from .. import stack_processes
from ..airflow_client import Airflow
from .installed import stack
from .strikes import POWER, Strike
from .victims import cut_power, kill

RUN_SECONDS = 1800.0  # that a struck run may take


@dataclass(frozen=True)
class Followed:
    """A DAG run, how it ended, how often each task was tried, and the last lines of those that failed."""

    dag: str
    run: str
    state: str
    tries: dict[str, int]
    why: list[str]


@dataclass
class Report:
    """What was done and what came of it.

    Attributes:
        strikes: as drawn, with `hit`, the process that was killed, or why none was.
        runs: each DAG run.
        problems: in a sentence each; none when the installation held what it promises.
    """

    seed: int
    strikes: list[dict[str, object]] = field(default_factory=list)
    runs: list[Followed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0


class DagRun:
    """One DAG run, which is struck and watched to its end; started again by hand, as a person would, when it fails with a reason.

    Args:
        form: of the DAG.
        run: one that was started already; "" starts it.
    """

    def __init__(self, dag: str, form: Mapping[str, object], report: Report, run: str = "") -> None:
        self.dag, self.form, self.report = dag, form, report
        self.id = run or self._trigger()

    def until_over(self, strikes: Sequence[Strike]) -> None:
        """Strike it while the strikes' tasks run, answer its approval, and note how it ended."""
        due, until, failures = list(strikes), time.monotonic() + RUN_SECONDS, 0
        airflow: Airflow | None = None
        while time.monotonic() < until:
            try:
                airflow = airflow or Airflow.of_settings(30)
                tasks = airflow.tasks(self.dag, self.id)
                over = airflow.state(self.dag, self.id)
                begun = {task["task_id"] for task in tasks if task["start_date"]}
                if due and (due[0].task in begun or over in ("success", "failed")):
                    self._strike(due.pop(0))
                elif over in ("success", "failed"):
                    self._note(airflow, over)
                    if over == "success" or failures == 2:
                        return
                    failures += 1
                    self.id = self._trigger()
                elif any(task["state"] == "awaiting_input" for task in tasks):
                    self._approve(airflow)
                else:
                    time.sleep(0.3)
            except TransientError:
                airflow = None
                time.sleep(0.5)
        self.report.problems.append(f"{self.dag} {self.id} did not end within {RUN_SECONDS:.0f} s")

    def _approve(self, airflow: Airflow) -> None:
        try:
            airflow.answer(self.dag, self.id, "approve", "Approve")
        except ClipftError as error:  # an answer that arrived, of which a strike took the receipt
            say(f"{self.dag} {self.id}: {error.why}")

    def _trigger(self) -> str:
        until, run = time.monotonic() + 300, f"chaos__{uuid4()}"
        while True:
            try:
                return Airflow.of_settings(30).trigger(self.dag, self.form, run)
            except TransientError:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def _strike(self, strike: Strike) -> None:
        time.sleep(strike.delay)
        hit = cut_power() if strike.kind == POWER else kill(strike.kind, strike.choice)
        say(f"{self.dag}, {strike.task}: {hit}")
        self.report.strikes.append(asdict(strike) | {"hit": hit, "run": self.id})
        if strike.kind in (POWER, stack_processes.SUPERVISOR):
            stack("up")

    def _note(self, airflow: Airflow, over: str) -> None:
        tasks = airflow.tasks(self.dag, self.id)
        why = [line for task in tasks if task["state"] == "failed" for line in airflow.log(self.dag, self.id, task)[-4:]]
        self.report.runs.append(Followed(self.dag, self.id, over, {t["task_id"]: t["try_number"] for t in tasks}, why))
        if over == "failed":
            say(f"{self.dag} {self.id} failed: {' | '.join(why)}")
            if not any("Error" in line for line in why):
                self.report.problems.append(f"{self.dag} {self.id} failed and does not say why")
