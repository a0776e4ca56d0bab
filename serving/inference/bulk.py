"""Many items in one request: NDJSON in, NDJSON out, both streamed, with an error for each item that has one.

A line in is a text or an image in a spelling of `embedding_request`, with an `id` of the caller's own. Lines are answered in their order,
in groups, as they come: nothing waits for the end of the body, and no more of it is taken in than is being answered. A group that finds no
room in the queues waits for it; those who ask for one answer come first. `cursor` counts the lines that were answered: the same
body with `?cursor=…` goes on from there.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..http.problems import document
from .admission import Admission
from .embedding_request import ImagePart, Part, TextPart
from .error_handlers import Problem, listed, of_exception, sentence
from .errors import ClientGoneError, QueueFullError, RequestRejectedError

log = logging.getLogger("uvicorn.error")
MEDIA_TYPE = "application/x-ndjson"
GROUP = 32  # items that are answered together
HELD = 8 * 2**20  # bytes of lines that wait; a longer line waits alone
TOGETHER = 0.05  # seconds that a group waits for more lines
IDLE_SECONDS = 60.0  # longest pause in a body
PATIENCE = 60.0  # seconds that a group waits for room
LARGEST_ID = 2**63  # a larger number would not come back as it was from most parsers
PART: TypeAdapter[TextPart | ImagePart] = TypeAdapter(Part, config=ConfigDict(hide_input_in_errors=True))

Answer = Mapping[str, object]  # JSON of one item's answer
Answers = Callable[[Sequence[str | bytes]], Awaitable[Sequence[Answer]]]  # of the parts of a group, in order


@dataclass(frozen=True)
class Line:
    """A line of the body: its number from 1, and what it says; None where it is too long."""

    number: int
    content: bytes | None


@dataclass(frozen=True)
class Item:
    """What a line asks for, or why that cannot be answered."""

    number: int
    id: str | int | float | None
    part: str | bytes | Problem


class Lines:
    """A body as lines: taken in as fast as they are answered.

    Args:
        longest: bytes of a line; what is beyond is dropped as it comes.
        skipped: lines at the beginning that were answered before.
    """

    def __init__(self, longest: int, skipped: int) -> None:
        self.longest, self.skipped = longest, skipped
        self.number = 0
        self._waiting: deque[Line] = deque()
        self._bytes = 0
        self._is_over = False
        self._changed = asyncio.Condition()

    async def read(self, receive: Receive) -> None:
        """Take the body in, then watch the client. Ends only by an exception: ClientGoneError, or RequestRejectedError (408)."""
        rest, is_too_long = bytearray(), False
        while not self._is_over:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise RequestRejectedError(408, f"Nothing of the body came for {IDLE_SECONDS:g} seconds.") from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            first, *more = message.get("body", b"").split(b"\n")
            rest += first  # in place: a long line may come byte by byte
            for following in more:
                content = None if is_too_long or len(rest) > self.longest else bytes(rest)
                rest, is_too_long = bytearray(following), False
                await self._put(content)
            if len(rest) > self.longest:
                rest, is_too_long = bytearray(), True
            if not message.get("more_body", False):
                if rest.strip() or is_too_long:
                    await self._put(None if is_too_long else bytes(rest))
                async with self._changed:
                    self._is_over = True
                    self._changed.notify_all()
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientGoneError

    async def groups(self) -> AsyncIterator[list[Line]]:
        """The lines, some at a time."""
        while group := await self._group():
            yield group

    async def _group(self) -> list[Line]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._is_over)
            try:
                async with asyncio.timeout(TOGETHER):
                    await self._changed.wait_for(lambda: len(self._waiting) >= GROUP or self._bytes >= HELD or self._is_over)
            except TimeoutError:
                pass
            group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
            self._bytes -= sum(len(line.content or b"") for line in group)
            self._changed.notify_all()
        return group

    async def _put(self, content: bytes | None) -> None:
        self.number += 1
        if self.number <= self.skipped or (content is not None and not content.strip()):
            return
        size = len(content or b"")
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._waiting or (self._bytes + size <= HELD and len(self._waiting) < GROUP)
            )
            self._waiting.append(Line(self.number, content))
            self._bytes += size
            self._changed.notify_all()


def read_items(lines: Sequence[Line], admission: Admission) -> list[Item]:
    """What lines ask for."""
    return [_read(line, admission) for line in lines]


def _read(line: Line, admission: Admission) -> Item:
    if line.content is None:
        return Item(line.number, None, Problem(413, f"The line has more than {admission.longest_line:,} bytes."))
    name = None
    try:
        with admission.small_json(memoryview(line.content)) as small:
            said = json.loads(small, parse_constant=_no_number)
            name = _name(said.pop("id", None)) if isinstance(said, dict) else None
            part = PART.validate_python(said)
    except ValidationError as error:
        errors = listed(error.errors(include_url=False, include_context=False, include_input=False))
        return Item(line.number, name, Problem(422, sentence(errors)))
    except (ValueError, RecursionError):
        return Item(line.number, None, Problem(422, "The line is not JSON."))
    except RequestRejectedError as error:
        return Item(line.number, name, of_exception(error) or Problem(422, error.detail))
    return Item(line.number, name, part.text if isinstance(part, TextPart) else part.image_url.url)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _name(said: object) -> str | int | float | None:
    """The caller's own id of a line, as JSON has it; None for what is none."""
    if isinstance(said, str):
        return said.encode("utf-8", "replace").decode()[:200]
    if isinstance(said, bool) or not isinstance(said, int | float) or not abs(said) <= LARGEST_ID:  # nor NaN
        return None
    return said


class BulkResponse(Response):
    """Reads the request's body and answers it, line by line.

    Args:
        answer: what the parts of a group are answered with, in order; raises what the other routes raise.
        admit: called before each group; raises RequestRejectedError 429 while the caller's quota is used up.
        headers: of the response; the version that answers all of it is among them.
    """

    def __init__(
        self,
        admission: Admission,
        lines: Lines,
        answer: Answers,
        admit: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self.admission, self.lines, self.answer, self.admit = admission, lines, answer, admit
        self.cursor, self.items, self.errors = lines.skipped, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.admission.bulk.take(1, is_small=False)
        self._is_counted = True
        reading = asyncio.create_task(self.lines.read(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                return writing.result()
            error = reading.exception()
            if not isinstance(error, RequestRejectedError):
                raise error or ClientGoneError
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self._send(send, [self._end(error)], is_last=True)
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            self._give_back()

    def _give_back(self) -> None:
        """Count as answered: before the last line goes out, after which a client may ask again at once."""
        if self._is_counted:
            self._is_counted = False
            self.admission.bulk.give_back(1)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for group in self.lines.groups():
                size = sum(len(line.content or b"") for line in group)
                items = await self.admission.off_loop(size, lambda group=group: read_items(group, self.admission))  # type: ignore[misc]
                await self._send(send, [answer async for answer in self._answers(items)])
                self.cursor = group[-1].number
        except (QueueFullError, RequestRejectedError) as error:
            return await self._send(send, [self._end(error)], is_last=True)
        await self._send(send, [self._end()], is_last=True)

    async def _answers(self, items: Sequence[Item]) -> AsyncIterator[Answer]:
        good = [item for item in items if not isinstance(item.part, Problem)]
        answered = dict(zip((item.number for item in good), await self._each([item.part for item in good]), strict=True))  # type: ignore[misc]
        for item in items:
            found = item.part if isinstance(item.part, Problem) else answered[item.number]
            self.items += 1
            self.errors += isinstance(found, Problem)
            said = {"error": _problem(found)} if isinstance(found, Problem) else found
            yield {"cursor": item.number, "id": item.id, **said}

    async def _each(self, parts: Sequence[str | bytes]) -> list[Answer | Problem]:
        """The answer of each part: all together, or where one of them cannot be answered, in halves until it stands alone."""
        if not parts:
            return []
        try:
            return list(await self._when_there_is_room(parts))
        except QueueFullError:
            raise
        except Exception as error:
            if isinstance(error, RequestRejectedError) and error.status == 429:
                raise
            if len(parts) > 1:
                half = len(parts) // 2
                return [*await self._each(parts[:half]), *await self._each(parts[half:])]
            found = of_exception(error)
            if found is None:
                log.error("an item of a bulk request failed", exc_info=error)
            return [found or Problem(500, "The server failed at this item; its log says why.")]

    async def _when_there_is_room(self, parts: Sequence[str | bytes]) -> Sequence[Answer]:
        """Raises QueueFullError, or RequestRejectedError (429) where it is the caller's own part, where there is none for too long."""
        wait = 0.1
        until = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                self.admit()
                return await self.answer(parts)
            except QueueFullError:
                if asyncio.get_running_loop().time() + wait > until:
                    raise
            except RequestRejectedError as error:
                if error.status != 429:
                    raise
                wait = float(error.headers.get("Retry-After", wait))
                if asyncio.get_running_loop().time() + wait > until:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, 2.0)

    def _end(self, error: Exception | None = None) -> Answer:
        """The last line: how far this came, and why it ended before the body did."""
        said: dict[str, object] = {"cursor": self.cursor, "done": error is None, "items": self.items, "errors": self.errors}
        found = of_exception(error) if error else None
        return said | ({"error": _problem(found)} if found else {})

    async def _send(self, send: Send, answers: Sequence[Answer], is_last: bool = False) -> None:
        if is_last:
            self._give_back()
        body = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})


def _problem(found: Problem) -> dict[str, object]:
    return document(found.status, found.detail, found.code)
