"""Whose turn it is: clients take turns, so that who asks much waits behind what it asked itself and not before others.

A client is who shows a key, or else an address; `CLIENT` says for whom the current task works.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from typing import Generic, ParamSpec, Protocol, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
CLIENT: ContextVar[str] = ContextVar("client", default="")  # "": the server itself


class FairLine(Generic[T]):
    """A line in which clients take turns; what one of them asked keeps its order. Not for several threads at once."""

    def __init__(self) -> None:
        self._of: dict[str, deque[T]] = {}  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for items in self._of.values() for item in items)

    def append(self, client: str, item: T) -> None:
        self._of.setdefault(client, deque()).append(item)
        self._count += 1

    def first(self) -> T:
        """Whose turn it is. Raises StopIteration when nobody waits."""
        return next(iter(self._of.values()))[0]

    def take(self, fits: Callable[[T], bool]) -> T | None:
        """What the next client waits for first that waits for something that fits; None when there is none."""
        client = next((client for client, items in self._of.items() if fits(items[0])), None)
        return None if client is None else self._pop_of(client)

    def pop_first(self) -> T:
        return self._pop_of(next(iter(self._of)))

    def _pop_of(self, client: str) -> T:
        items = self._of.pop(client)
        item = items.popleft()
        if items:
            self._of[client] = items  # behind the others
        self._count -= 1
        return item

    def clear(self) -> None:
        self._of.clear()
        self._count = 0


class FairTurns:
    """Requests that came at once begin one an iteration of the event loop, and clients take turns. Else fifty whose answers are ready
    at once hold up the loop for all fifty, and everybody else with it.
    """

    def __init__(self) -> None:
        self._line: FairLine[asyncio.Future[None]] = FairLine()
        self._is_called = False

    async def take(self) -> None:
        """Wait for the turn of `CLIENT`."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(CLIENT.get(), turn)
        self._call()
        await turn

    def _call(self) -> None:
        if not self._is_called and len(self._line):
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_called = False
        while len(self._line):
            turn = self._line.pop_first()
            if not turn.cancelled():
                turn.set_result(None)
                break
        self._call()


class _Undone(Protocol):
    """What waits in line may be given up."""

    def cancel(self) -> bool: ...


def _carry_out(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


class FairPool(Executor):
    """A few threads for which clients take turns (`CLIENT`, where something is submitted)."""

    def __init__(self, threads: int, name: str) -> None:
        self._line: FairLine[tuple[_Undone, Callable[[], None]]] = FairLine()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises RuntimeError when the pool is closed."""
        future: Future[T] = Future()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the pool is closed")
            self._line.append(CLIENT.get(), (future, lambda: _carry_out(future, lambda: function(*args, **kwargs))))
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._is_closed = True
            left = list(self._line) if cancel_futures else []
            if cancel_futures:
                self._line.clear()
            self._changed.notify_all()
        for future, _ in left:
            future.cancel()
        if wait:
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not len(self._line) and not self._is_closed:
                    self._changed.wait()
                if not len(self._line):
                    return
                item = self._line.pop_first()
            item[1]()
            del item  # an idle thread holds nothing
