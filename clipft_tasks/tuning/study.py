"""A study: every trial of one search, in a database that all who run trials share.

Trial N of a study is trial N for ever. Whoever is killed while running it leaves it as `running`; the next one to ask for N
takes it over and goes on from its checkpoint, so nothing is counted twice and no number is lost. (Optuna's own heartbeat
gives a repeated trial another number, and works only inside `optimize`.)
"""

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from ..core.console import say
from ..core.errors import TransientError
from ..core.settings import settings
from ..spec.ranges import Value
from .search_space import Dimension, SearchSpace
from .trials import TEMPLATE, State, Trial

BEAT = 5.0  # seconds between two signs of life
LOST = 30.0  # seconds without one after which a trial on another machine is taken over
STARTUP = 5  # trials that are drawn at random before the sampler learns from them
SEEDS = 100_003  # between the samplers of two seeds

STATES = {TrialState.COMPLETE: State.COMPLETE, TrialState.PRUNED: State.PRUNED, TrialState.FAIL: State.FAILED,
          TrialState.RUNNING: State.RUNNING, TrialState.WAITING: State.WAITING}  # fmt: skip


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a trial.

    Attributes:
        host, process: where it runs.
        seconds: that it took so far, over all its attempts.
    """

    host: str
    process: int
    seconds: float


@contextmanager
def database() -> Iterator[None]:
    """Turn "the database cannot be reached" into TransientError, so that the task is tried again."""
    try:
        yield
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, optuna.exceptions.StorageInternalError) as error:
        where = sqlalchemy.make_url(settings().studies).render_as_string(hide_password=True)
        raise TransientError(f"The database of tuning studies at {where} does not answer: {error}") from error


@cache
def _storage(url: str) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the stages say what happens themselves
    if url.startswith(("http://", "https://")):  # a worker that reaches no database
        from .remote_storage import HttpStorage

        return HttpStorage(url, *(settings().credentials or ("", "")))
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    with database(), FileLock(str(settings().folder("tuning") / "database.lock")):  # two must not make the tables at once
        return optuna.storages.RDBStorage(url, engine_kwargs=waits)


class Study:
    """One search.

    Args:
        name: a study that `open_study` opened.
        seed: of the sampler.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self._storage = _storage(settings().studies)
        with database():
            self._study = optuna.load_study(study_name=name, storage=self._storage)
            written: dict[str, str] = self._study.user_attrs["space"]
        self._space = {field: optuna.distributions.json_to_distribution(text) for field, text in written.items()}

    def trials(self) -> list[Trial]:
        """Every trial, by number."""
        with database():
            return [_trial(t) for t in self._study.get_trials(deepcopy=False)]

    @contextmanager
    def exclusive(self, number: int) -> Iterator[None]:
        """Run trial `number` alone: nobody else on this machine does, and who did elsewhere has ended or is lost."""
        with FileLock(str(settings().folder("tuning", "locks") / f"{self.name}-{number}.lock")):  # a killed holder frees it
            self._wait_for_others(number)
            yield

    def begin(self, number: int) -> dict[str, Value]:
        """Start trial `number`, or take it over; returns its values by field. The same values however often it begins."""
        identity = self._id(number)
        with database(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._storage.get_trial(identity).state == TrialState.WAITING:
                self._storage.set_trial_state_values(identity, TrialState.RUNNING)
            # A sampler of its own for each number: what it draws depends on the trials before, not on who else drew.
            self._study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=self.seed * SEEDS + number)
            trial = optuna.trial.Trial(self._study, identity)
            fixed = self._storage.get_trial(identity).system_attrs.get("fixed_params", {})
            for field, kind in self._space.items():
                if number == TEMPLATE and field not in fixed:
                    continue  # the template leaves it to the objective
                _suggest(trial, field, kind)
            return dict(trial.params)

    def report(self, number: int, epoch: int, score: float) -> bool:
        """Note the score after an epoch; whether the trial is not worth going on with. The template's always is."""
        with database(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a resumed trial repeats an epoch that it reported
            trial = optuna.trial.Trial(self._study, self._id(number))
            trial.report(score, epoch)
            self._study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP - 1, n_warmup_steps=0)
            return number != TEMPLATE and trial.should_prune()

    @contextmanager
    def heartbeat(self, number: int) -> Iterator[Callable[[], None]]:
        """Give signs of life, and count the seconds, while trial `number` runs here. Yields what gives one at once."""
        identity, stop, last = self._id(number), threading.Event(), self._last_beat(number)
        before, began = last.seconds if last else 0.0, time.monotonic()
        host, process = socket.gethostname(), os.getpid()

        def beat() -> None:
            with contextlib.suppress(TransientError), database():
                now = Heartbeat(host, process, round(before + time.monotonic() - began, 2))
                self._storage.set_trial_user_attr(identity, "beat", asdict(now))

        def beats() -> None:
            while not stop.wait(BEAT):
                beat()

        beat()
        thread = threading.Thread(target=beats, daemon=True, name="beat")
        thread.start()
        try:
            yield beat
        finally:
            stop.set()
            thread.join()
            beat()

    def end(self, number: int, state: State, *, score: float | None = None, right: str = "", reason: str = "") -> None:
        """Write down how trial `number` ended; a second time changes nothing."""
        identity = self._id(number)
        kept = next(k for k, v in STATES.items() if v == state)
        with database():
            if self._storage.get_trial(identity).state.is_finished():
                return
            self._storage.set_trial_user_attr(identity, "right", right)
            self._storage.set_trial_user_attr(identity, "reason", reason[:1500])
            self._study.tell(number, score, state=kept)

    def _wait_for_others(self, number: int) -> None:
        """Wait while another machine runs the trial; return when it has ended, or has given no sign of life for long."""
        seen, since, told = self._last_beat(number), time.monotonic(), False
        while seen and seen.host != socket.gethostname() and self._state(number) == TrialState.RUNNING:
            if not told:
                say(f"Trial {number} was begun on {seen.host}; watching whether it still runs there.")
                told = True
            time.sleep(1)
            now = self._last_beat(number)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > LOST:
                say(f"No sign of life of trial {number} for {LOST:.0f} s: it goes on here.")
                return

    def _id(self, number: int) -> int:
        with database():
            return self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

    def _state(self, number: int) -> TrialState:
        with database():
            return self._storage.get_trial(self._id(number)).state

    def _last_beat(self, number: int) -> Heartbeat | None:
        with database():
            return _beat_of(self._storage.get_trial(self._id(number)))

    def importance(self) -> dict[str, float]:
        """How much of the score's variation each field explains (fANOVA, Hutter et al. 2014,
        https://proceedings.mlr.press/v32/hutter14.html); {} while too little was tried to say."""
        if len({t.score for t in self.trials() if t.score is not None}) < 3:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with database(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))


def open_study(name: str, subject: str, space: SearchSpace, code: Mapping[str, str | int], trials: int) -> str:
    """The study `name` with at least `trials` trials to run, made when there is none.

    Args:
        subject: what is tuned on what; studies of one subject differ in space or code.
        space: of the search; the template's values are those of trial 0.
        code: versions of what trains, by name.
    Returns: whether it is new or goes on, and why.
    """
    storage = _storage(settings().studies)
    kinds = {field: optuna.distributions.distribution_to_json(_distribution(d)) for field, d in space.items()}
    with database(), FileLock(str(settings().folder("tuning") / "open.lock")):
        known = [s for s in optuna.get_all_study_summaries(storage) if s.user_attrs.get("subject") == subject]
        same = any(s.study_name == name for s in known)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        for key, value in {"subject": subject, "code": dict(code), "space": kinds}.items():
            study.set_user_attr(key, value)
        there = len(study.get_trials(deepcopy=False))
        if there == 0:
            study.enqueue_trial({field: d.template for field, d in space.items() if d.template is not None})
        for _ in range(max(there, 1), trials):
            study.enqueue_trial({})
    if same:
        ended = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
        return f"goes on with study {name}, in which {ended} trials have ended"
    why = [_difference(s.user_attrs["space"], s.user_attrs["code"], kinds, code) for s in known if "space" in s.user_attrs]
    return f"study {name} is new" + (f": since the last one, {why[-1]}" if why else "")


def _difference(
    old_space: Mapping[str, str], old_code: Mapping[str, str | int], space: Mapping[str, str], code: Mapping[str, str | int]
) -> str:
    """What makes a study of the same subject another one."""
    changed = sorted(k for k in old_space.keys() | space.keys() if old_space.get(k) != space.get(k))
    out = [f"the search space changed ({', '.join(changed)})"] if changed else []
    changed = sorted(k for k in old_code.keys() | code.keys() if old_code.get(k) != code.get(k))
    out += [f"the code changed ({', '.join(changed)})"] if changed else []
    return " and ".join(out) or "something else changed"


def _trial(trial: FrozenTrial) -> Trial:
    beat = _beat_of(trial)
    return Trial(
        number=trial.number,
        state=STATES[trial.state],
        values=dict(trial.params),
        score=trial.value if trial.state == TrialState.COMPLETE else None,
        seconds=beat.seconds if beat else 0.0,
        reason=trial.user_attrs.get("reason", ""),
        right=trial.user_attrs.get("right", ""),
        epochs=dict(sorted(trial.intermediate_values.items())),
    )


def _beat_of(trial: FrozenTrial) -> Heartbeat | None:
    written = trial.user_attrs.get("beat")
    return Heartbeat(written["host"], written["process"], float(written["seconds"])) if written else None


def _distribution(dimension: Dimension) -> BaseDistribution:
    declared = dimension.range
    if declared.choices:
        return CategoricalDistribution(declared.choices)
    if dimension.whole:
        return IntDistribution(int(declared.low), int(declared.high), log=declared.log)
    return FloatDistribution(float(declared.low), float(declared.high), log=declared.log)


def _suggest(trial: optuna.trial.Trial, field: str, kind: BaseDistribution) -> None:
    if isinstance(kind, CategoricalDistribution):
        trial.suggest_categorical(field, kind.choices)
    elif isinstance(kind, IntDistribution):
        trial.suggest_int(field, kind.low, kind.high, log=kind.log)
    elif isinstance(kind, FloatDistribution):
        trial.suggest_float(field, kind.low, kind.high, log=kind.log)
