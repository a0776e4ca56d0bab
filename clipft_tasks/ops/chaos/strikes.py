"""Which processes are killed when: drawn from a seed, so that the same seed strikes the same tasks in the same order."""

import random
from dataclasses import dataclass

POWER = "power"
TASK = "task"  # the process in which a stage runs
WORKER = "worker"  # the scheduler's, which starts them
KINDS = (
    TASK, WORKER, "scheduler", "dag-processor", "triggerer", "airflow-api", "mlflow", "server", "statsd", "prometheus",
    "alertmanager", "supervisor",
)  # fmt: skip
DURING = {
    "clipft_dataset": ("ingest", "validate", "version"),
    "clipft_finetune": ("plan", "finetune", "evaluate", "gate", "register", "promote", "deploy", "verify"),
    "clipft_rollback": ("rollback", "promote", "deploy", "verify"),  # from the second round on
    "clipft_drift_watch": ("watch", "triage", "readapt"),  # once, after the rounds
    "clipft_readapt": ("suggest", "approve", "dataset", "form", "finetune", "close"),  # likewise
}
ONCE = ("clipft_drift_watch", "clipft_readapt")
OTHERS = ("dataset", "finetune")  # tasks that wait for a run of another DAG, and work there
LONGEST = 3.0  # seconds between a task's start and the strike
BRIEF = 0.4  # likewise, where the task itself is struck: many are over within a second
WHOLE = 30.0  # likewise, where another DAG's run works


@dataclass(frozen=True)
class Strike:
    """One SIGKILL, or a power cut: all of them at once.

    Attributes:
        round: which data set and training, from 1; of what is done once, the last.
        kind: one of `KINDS`, or `POWER`.
        dag, task: during which task of the round.
        delay: seconds after that was seen to run.
        choice: in 0 … 1, which of several processes of that kind.
    """

    round: int
    kind: str
    dag: str
    task: str
    delay: float
    choice: float


def draw(seed: int, kills: int, power_cuts: int, rounds: int) -> list[Strike]:
    """So many strikes in so many rounds, two at least, in order. No kind is struck twice before each was struck once."""
    rng = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < kills:
        kinds += rng.sample(KINDS, len(KINDS))
    kinds = kinds[:kills]
    places = [(dag, task) for dag, tasks in DURING.items() for task in tasks]
    found = []
    for number, kind in [*enumerate(kinds), *enumerate([POWER] * power_cuts)]:
        dag, task = rng.choice(places)
        longest = WHOLE if dag in ONCE and task in OTHERS else BRIEF if kind == TASK else LONGEST
        round_ = rounds if dag in ONCE else number % rounds + 1
        if dag == "clipft_rollback":
            round_ = max(2, round_)
        found.append(Strike(round_, kind, dag, task, round(rng.uniform(0, longest), 2), round(rng.random(), 3)))
    return sorted(found, key=lambda s: (s.round, places.index((s.dag, s.task)), s.delay))
