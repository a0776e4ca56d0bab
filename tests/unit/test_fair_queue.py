"""Clients take turns: at a line, in a pool of threads, of requests a second, and of whatever is limited."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest

from serving.http.addresses import address_of
from serving.inference import addresses
from serving.inference.addresses import AddressLimit
from serving.inference.admission import Budget
from serving.inference.errors import QueueFullError, RequestRejectedError
from serving.inference.fair_queue import CLIENT, FairLine, FairPool, FairTurns


@contextmanager
def as_client(name: str):
    token = CLIENT.set(name)
    try:
        yield
    finally:
        CLIENT.reset(token)


def test_at_a_line_clients_take_turns_and_each_keeps_its_order():
    line: FairLine[str] = FairLine()
    for client, item in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")):
        line.append(client, item)
    assert len(line) == 6 and line.first() == "a1"
    assert [line.pop_first() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"] and len(line) == 0


def test_a_pool_serves_another_client_before_what_one_asked_a_hundred_times():
    pool, free, done = FairPool(1, "test"), threading.Event(), []
    with as_client("greedy"):
        first = pool.submit(free.wait, 5)
        many = [pool.submit(done.append, "greedy") for _ in range(100)]
    with as_client("other"):
        one = pool.submit(done.append, "other")
    many[3].cancel()
    free.set()
    one.result(5)
    assert done.index("other") <= 1 and first.result(5)
    many[-1].result(5)
    assert done.count("greedy") == 99
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(print)


def test_of_a_budget_a_client_gets_as_much_as_is_left_for_the_others():
    budget = Budget(100, 0, "100 things are in use")
    for client, most in (("a", 50), ("b", 25), ("c", 13)):
        with as_client(client):
            for _ in range(most):
                budget.take(1)
            with pytest.raises(RequestRejectedError) as refused:
                budget.take(1)
            assert refused.value.status == 429
    with as_client("late"):
        budget.take(5)
        with pytest.raises(QueueFullError):
            budget.take(50)
        budget.give_back(5)
    with as_client("a"):
        budget.give_back(50)
    assert budget.used == 38
    with as_client(""):  # the server's own work
        budget.take(60)


def test_who_is_alone_may_ask_as_often_as_it_likes(monkeypatch):
    monkeypatch.setattr(addresses, "ACTIVE", 0.2)
    limit = AddressLimit(rate=10, burst=2)

    async def go() -> None:
        began = time.monotonic()
        for _ in range(200):
            await limit.admit("one")
        assert time.monotonic() - began < 0.2
        await limit.admit("another")  # now they share
        began = time.monotonic()
        await limit.admit("another")
        assert time.monotonic() - began < 0.1
        with pytest.raises(RequestRejectedError) as refused:
            await limit.admit("one")
        assert refused.value.status == 429 and refused.value.headers["Retry-After"] == "1"
        assert time.monotonic() - began >= 1  # asking on at once gains nothing
        await asyncio.sleep(0.3)
        await limit.admit("one")  # the other has gone

    asyncio.run(go())


def test_who_asks_a_little_too_fast_is_slowed_down_and_not_refused():
    limit = AddressLimit(rate=20, burst=1, always=True)

    async def go() -> float:
        began = time.monotonic()
        await asyncio.gather(*(limit.admit("one") for _ in range(8)))
        return time.monotonic() - began

    assert 0.3 <= asyncio.run(go()) < 1.5


def test_no_number_of_clients_fills_the_memory(monkeypatch):
    monkeypatch.setattr(addresses, "KNOWN", 10)
    limit = AddressLimit(rate=1000, burst=1000)
    asyncio.run(asyncio.wait_for(_ask_all(limit), 5))
    assert len(limit._seen) == 10


async def _ask_all(limit: AddressLimit) -> None:
    for n in range(100):
        await limit.admit(str(n))


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
        ("testclient", "testclient"),
    ],
)
def test_a_network_of_ipv6_is_one_client(said, counted):
    assert address_of(said) == counted


def test_what_came_at_once_begins_one_after_the_other_and_another_client_is_next():
    begun: list[str] = []

    async def request(client: str, turns: FairTurns) -> None:
        CLIENT.set(client)
        await turns.take()
        begun.append(client)
        if len(begun) == 3:  # while those of the greedy client wait
            asyncio.get_running_loop().create_task(request("other", turns))

    async def all_at_once() -> None:
        turns = FairTurns()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = [group.create_task(request("greedy", turns)) for _ in range(50)]
            waiting[10].cancel()

    asyncio.run(all_at_once())
    assert len(begun) == 50 and "other" in begun[3:8]
