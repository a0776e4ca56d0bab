"""What an installation holds after the rounds, to be compared between one that was struck and one that was not."""

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, TypeAlias

from ...core.settings import settings
from .made import DOMAIN

if TYPE_CHECKING:
    from mlflow import MlflowClient

State: TypeAlias = dict[str, Any]  # JSON: what is compared whole, by name
STATE = "STATE "  # before it, in what a program prints


def found() -> State:
    """Data sets, runs and models as they are: what must be the same however often the work was cut."""
    from ... import tracking
    from ...data import versioning

    state: State = {"data sets": {v.tag: v.card.to_json()["content"] for v in versioning.versions(DOMAIN)}}
    client = tracking.client()
    runs = client.search_runs([tracking.get_or_create_experiment(f"clipft-{DOMAIN}")], max_results=1000)
    by_key: dict[str, list[str]] = {}  # a key is also of the version's commit, which no two repositories share
    for run in runs:
        by_key.setdefault(run.data.tags.get("clipft.key", ""), []).append(run.info.status)
    state["runs"] = sorted(by_key.values())
    name = tracking.model_name(DOMAIN)
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
    aliases = client.get_registered_model(name).aliases  # a search gives versions without theirs
    state["models"] = {
        str(v.version): {"tags": sorted(v.tags), "aliases": sorted(a for a, of in aliases.items() if str(of) == str(v.version))}
        for v in versions
    }
    state["metrics"] = {str(v.version): _metrics(client, str(v.run_id)) for v in versions}
    return state


def _metrics(client: "MlflowClient", run_id: str) -> dict[str, list[list[float]]]:
    """Every loss and score of a run by step, each once; but not how long something took."""
    names = [n for n in client.get_run(run_id).data.metrics if re.match(r"(train\.loss|test\.|val\.)(?!.*milliseconds)", n)]
    return {
        name: sorted([step, value] for step, value in {(m.step, m.value) for m in client.get_metric_history(run_id, name)})
        for name in sorted(names)
    }


def differences(expected: State, state: State) -> list[str]:
    """In a sentence each, what an installation has otherwise."""
    problems = []
    for kind in expected:
        one, other = expected[kind], state[kind]
        if one == other:
            continue
        if isinstance(one, dict):
            for name in sorted(one.keys() | other.keys()):
                if one.get(name) != other.get(name):
                    problems.append(f"{kind}, {name}: {_short(other.get(name))} instead of {_short(one.get(name))}")
        else:
            more = [entry for entry in other if entry not in one or other.count(entry) != one.count(entry)]
            less = [entry for entry in one if entry not in other]
            problems.append(f"{kind}: {_short(more)} instead of {_short(less)}")
    return problems


def not_readapted(before: State, after: State) -> list[str]:
    """In a sentence each, what else than one more data set, training and version, now champion, came of a re-adaptation."""
    problems = []
    for kind in ("data sets", "models"):
        made = sorted(after[kind].keys() - before[kind].keys())
        if len(made) != 1:
            problems.append(f"{kind}: the re-adaptation made {_short(made)} and not one")
    trained = [statuses for statuses in after["runs"] if after["runs"].count(statuses) != before["runs"].count(statuses)]
    if len(after["runs"]) != len(before["runs"]) + 1 or ["FINISHED"] not in trained:
        problems.append(f"runs: {_short(after['runs'])} after {_short(before['runs'])}")
    new = after["models"].keys() - before["models"].keys()
    champions = {number for number, model in after["models"].items() if "champion" in model["aliases"]}
    if champions != new:
        problems.append(f"version {_short(sorted(champions))} is champion and not {_short(sorted(new))}")
    kept = {"data sets": before["data sets"], "metrics": before["metrics"]}
    problems += differences(kept, {kind: {k: v for k, v in after[kind].items() if k in kept[kind]} for kind in kept})
    for number in sorted(new):
        for name, history in after["metrics"][number].items():
            if len({step for step, _ in history}) != len(history):  # a resumed training that came to something else
                problems.append(f"metrics, {number}: {name} has two values at one step: {_short(history)}")
    return problems


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 300 else f"{text[:300]}…"


def left_behind() -> list[str]:
    """What no finished work needs, in a sentence each: halves of files and folders, changes of a repository, leases."""
    from ...tracking import leases

    root, problems = settings().root, []
    at_work = {"logs", "prometheus", "alertmanager", "graphs"}  # who runs writes there now
    for path in root.rglob("*"):
        if re.search(r"\.(part|building|tmp)$", path.name) and not at_work & set(path.parts):
            problems.append(f"{path.relative_to(root)} was left half-made")
    status = subprocess.run(
        ["git", "-C", settings().working_copy, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    problems += [f"the repository of data sets has a change that is no version's: {line}" for line in status.splitlines()]
    problems += [f"{path.relative_to(root)} was left" for path in settings().working_copy.rglob("*.lock")]
    for what in ("champion", "register", "runs", "incidents"):
        if claim := leases.current(f"{what}.{DOMAIN}"):
            problems.append(f"the lease {what}.{DOMAIN} is held by {claim.holder}")
    return problems
