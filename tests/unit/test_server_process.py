"""A server process: what it logs, when it ends by itself, and what a deployment that is undone leaves."""

import asyncio
import logging
import signal
from types import SimpleNamespace

import pytest

from serving.inference import shutdown
from serving.inference.metrics import Metrics
from serving.inference.model_store import ModelStore
from serving.inference.quiet_log import limit_repeats


def test_what_is_said_again_and_again_is_counted_instead(caplog, monkeypatch):
    name = "clipft.test_quiet"
    limit_repeats(name)
    limit_repeats(name)  # a second application of the process
    log = logging.getLogger(name)
    with caplog.at_level(logging.INFO, name):
        for n in range(1000):
            log.warning("no request: %s", n)
        log.warning("something else")
        kinds = log.filters[0]._kinds
        kinds[logging.WARNING, "no request: %s"]._free = 1.0  # some time later
        log.warning("no request: %s", "again")
    assert len(log.filters) == 1 and 50 <= len(caplog.messages) < 70
    assert "something else" in caplog.messages and "more like this were left out" in caplog.messages[-1]


@pytest.mark.parametrize(("found", "ends"), [(["gone"] * 9, True), (["gone", "gone", "", "gone", "gone", ""] * 3, False)])
def test_a_process_ends_whose_thread_stays_gone(monkeypatch, found, ends):
    monkeypatch.setattr(shutdown, "BETWEEN", 0.001)
    sent, left = [], iter(found)
    monkeypatch.setattr(shutdown.os, "kill", lambda process, number: sent.append(number))
    server = SimpleNamespace(thread_problem=lambda: next(left))

    async def go() -> None:
        await shutdown.watch_threads(server)

    try:
        asyncio.run(go())
    except RuntimeError:  # nothing more to see: a coroutine turns StopIteration into this
        assert not ends
    assert sent == ([signal.SIGTERM] if ends else [])


def test_a_deployment_that_is_undone_leaves_what_was_before():
    store = ModelStore(None, Metrics(), None)
    old, new = (SimpleNamespace(domain="general", version=v, lineage={}, since=0.0) for v in "12")
    store.live = {"general": new}
    store._announce(old, None)
    store._announce(new, old)
    store.restore("general", old, "1")
    assert store.live == {"general": old} and store.held == {"general": "1"}
    store.restore("general", None, "")
    assert store.live == {} and store.held == {}
