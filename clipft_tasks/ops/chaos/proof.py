"""The proof: an installation of its own, rounds of the loop, strikes, and what came of it beside a run that nobody disturbed."""

import time
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path

import httpx

from ...core.console import say
from ...core.errors import ClipftError
from ...core.settings import CHECKOUT, settings
from .. import stack_processes
from . import made, state
from .drift import readapt
from .installed import become, stack, undisturbed
from .runs import DagRun, Report
from .strikes import draw
from .victims import lives, title

PER_ROUND = 9  # strikes
LEAST = 2  # rounds: from the second on there is a version to go back to


def run(folder: Path, kills: int, power_cuts: int, seed: int, keep: Callable[[Report], None]) -> Report:
    """Strike an installation that is made in `folder` for this and stopped at the end.

    Args:
        keep: is given the report as far as it is, now and then.
    Raises: ClipftError where the folder is not empty, there is no checkout, or the stack does not come up at all.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise ClipftError(str(folder), "it is not empty", "Name a new folder.", code="chaos.folder_in_use")
    if not (CHECKOUT / "Procfile").exists():
        raise ClipftError(
            "the embedded stack", "it is started from a clone of clipft", "Run this there.", code="chaos.no_checkout"
        )
    began, report = time.monotonic(), Report(seed)
    rounds = max(LEAST, ceil((kills + power_cuts) / PER_ROUND))
    strikes = draw(seed, kills, power_cuts, rounds)
    made.make(folder / "made", rounds)
    expected = undisturbed(folder, rounds)
    become(folder / "home", made.domain_file(folder / "made"))
    try:
        stack("up")
        for number in range(1, rounds + 1):
            say(f"Round {number} of {rounds}")
            for dag, form in made.forms(folder / "made", number).items():
                DagRun(dag, form, report).until_over([s for s in strikes if (s.round, s.dag) == (number, dag)])
                keep(report)
        before = state.found()
        report.problems += [*state.differences(expected, before), *_judge()]
        say("Other images arrive")
        readapt(made.later(folder / "made"), strikes, report)
        keep(report)
        report.problems += [*state.not_readapted(before, state.found()), *_judge()]
    finally:
        there = stack_processes.members()
        stack("down")
    report.problems += [f"process {p.pid} outlived `make down`: {title(p)}" for p in there if lives(p)]
    report.seconds = round(time.monotonic() - began, 1)
    keep(report)
    return report


def _judge() -> list[str]:
    """What is not as it must be whatever was done, in a sentence each."""
    from ... import tracking
    from ..doctor import health

    champion = tracking.version_number(tracking.champion(made.DOMAIN))
    live, until = "", time.monotonic() + 120
    while live != champion and time.monotonic() < until:
        with suppress(httpx.HTTPError, ValueError):
            live = httpx.get(f"{settings().server_url}/readyz", timeout=30).json()["live"].get(made.DOMAIN, "")
        time.sleep(0.5)
    problems = [] if live == champion else [f"the server answers with version {live or 'none'} and not with {champion}"]
    problems += state.left_behind()
    if keeper := stack_processes.programs().get(stack_processes.SUPERVISOR):
        family = {keeper, *keeper.children(recursive=True)}
        strays = [p for p in stack_processes.members() if p not in family and lives(p)]
        problems += [f"process {p.pid} is no program's: {title(p)}" for p in strays]
    findings = health.run_checks()
    return problems + ([] if health.is_healthy(findings) else [f"clipft doctor: {line}" for line in health.as_lines(findings)])
