"""The engine: jobs of one model and kind share a forward pass, nothing that a job does ends a thread, and torch runs in one alone."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from clipft_tasks.model.backends.base import SharedRunner
from serving.inference.batching import Engine, encode
from serving.inference.errors import QueueFullError
from serving.inference.job_queue import Encoding, JobQueue
from serving.inference.metrics import Metrics

BREAK = 10**6  # a token that the model breaks at


class Model:
    """Stands where a Clip would: its answer tells whose it is and which item it answers; it notes each forward pass."""

    def __init__(self, number: int, device: str = "cpu") -> None:
        self.number, self.device, self.pad = number, torch.device(device), 0
        self.passes: list[tuple[str, int]] = []
        self.threads: set[int] = set()

    def _answer(self, kind: str, values: list[float]) -> torch.Tensor:
        self.passes.append((kind, len(values)))
        self.threads.add(threading.get_ident())
        return torch.tensor([[self.number, v] for v in values], dtype=torch.float32)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return self._answer("images", [float(p[0, 0, 0]) for p in images])

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        if BREAK in tokens:
            raise RuntimeError("the model broke")
        return self._answer("texts", tokens[:, 0].tolist())


class Loaded:
    def __init__(self, number: int, device: str = "cpu") -> None:
        self.clip, self.domain = Model(number, device), "general"


def images(*values: int) -> np.ndarray:
    return np.stack([np.full((3, 4, 4), v, np.uint8) for v in values])


def texts(*values: int) -> np.ndarray:
    return np.array([[v] for v in values])


@pytest.fixture
def made():
    """Makes engines and closes them."""
    engines = []

    def make(**options) -> Engine:
        engines.append(Engine("cpu", 1, Metrics(), **{"max_batch": 8, "max_wait": 0.05, "max_queue": 64, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def together(engine: Engine, *asked, cancel: tuple[int, ...] = ()) -> list:
    """Have all jobs, (model, items), wait in the queue before the first is looked at; answers or exceptions."""

    async def go() -> list:
        started, release = threading.Event(), threading.Event()
        engine.call(lambda: (started.set(), release.wait(10)))
        await asyncio.to_thread(started.wait, 10)
        tasks = [asyncio.create_task(engine.encode(model, items)) for model, items in asked]
        await asyncio.sleep(0.02)
        for number in cancel:
            tasks[number].cancel()
        await asyncio.sleep(0)
        release.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    return asyncio.run(go())


def test_jobs_of_one_model_and_kind_share_a_forward_pass(made):
    live = Loaded(1)
    answers = together(made(), (live, images(10)), (live, images(11, 12)), (live, images(13)))
    assert live.clip.passes == [("images", 4)]
    assert [a[:, 1].tolist() for a in answers] == [[10], [11, 12], [13]]


def test_a_job_that_comes_within_the_wait_joins(made):
    live, engine = Loaded(1), made(max_wait=2.0, max_batch=2)

    async def go():
        first = asyncio.create_task(engine.encode(live, texts(1)))
        await asyncio.sleep(0.1)
        return await asyncio.gather(first, engine.encode(live, texts(2)))

    asyncio.run(go())
    assert live.clip.passes == [("texts", 2)]


def test_a_lone_job_waits_no_longer_than_the_wait(made):
    live, engine = Loaded(1), made(max_wait=0.1)
    began = time.monotonic()
    asyncio.run(engine.encode(live, texts(1)))
    assert 0.08 < time.monotonic() - began < 2


def test_two_models_never_share_a_forward_pass(made):
    one, two = Loaded(1), Loaded(2)
    answers = together(made(), *((live, images(n)) for n, live in enumerate([one, two, one, one, two, two])))
    assert [a.tolist() for a in answers] == [[[1, 0]], [[2, 1]], [[1, 2]], [[1, 3]], [[2, 4]], [[2, 5]]]
    assert one.clip.passes == [("images", 1), ("images", 2)] and two.clip.passes == [("images", 1), ("images", 2)]


def test_images_and_texts_never_share_a_forward_pass(made):
    live = Loaded(1)
    answers = together(made(), (live, images(1)), (live, texts(2)), (live, images(3)))
    assert live.clip.passes == [("images", 1), ("texts", 1), ("images", 1)]
    assert [a[0, 1] for a in answers] == [1, 2, 3]


def test_no_forward_pass_is_larger_than_max_batch(made):
    live = Loaded(1)
    jobs = [texts(1, 2, 3), texts(4, 5, 6), texts(7, 8), texts(*range(20)), texts(9)]
    answers = together(made(max_batch=8), *((live, j) for j in jobs))
    assert [a[:, 1].tolist() for a in answers] == [j[:, 0].tolist() for j in jobs]
    assert all(kind == "texts" and count <= 8 for kind, count in live.clip.passes)
    assert live.clip.passes[0] == ("texts", 8) and sum(count for _, count in live.clip.passes) == 29


def test_small_jobs_never_wait_for_more_than_one_part_of_a_large_one(made):
    live, done = Loaded(1), []
    engine = made(max_batch=8, max_wait=0)

    async def one(name: str, items) -> None:
        await engine.encode(live, items)
        done.append(name)

    async def go() -> None:
        started, release = threading.Event(), threading.Event()
        engine.call(lambda: (started.set(), release.wait(10)))
        await asyncio.to_thread(started.wait, 10)
        tasks = [asyncio.create_task(one("large", texts(*range(200))))]
        tasks += [asyncio.create_task(one(f"small {n}", images(n))) for n in range(3)]
        await asyncio.sleep(0.02)
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert done[-1] == "large"
    last = max(n for n, (kind, _) in enumerate(live.clip.passes) if kind == "images")
    assert sum(count for kind, count in live.clip.passes[:last] if kind == "texts") <= 8 + 2  # before the third small one


def test_a_large_job_that_is_taken_back_stops_between_its_parts(made):
    live, engine = Loaded(1), made(max_batch=8)

    async def go() -> None:
        task = asyncio.create_task(engine.encode(live, texts(*range(10_000))))
        while not live.clip.passes:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.05)
        stopped = len(live.clip.passes)
        await engine.encode(live, texts(1))
        assert len(live.clip.passes) <= stopped + 1 < 1000

    asyncio.run(go())


def test_a_job_that_waited_too_long_is_answered_so_and_not_computed(made):
    live, engine = Loaded(1), made(most_seconds=0.1)

    async def go() -> None:
        started, release = threading.Event(), threading.Event()
        engine.call(lambda: (started.set(), release.wait(10)))
        await asyncio.to_thread(started.wait, 10)
        task = asyncio.create_task(engine.encode(live, texts(1)))
        await asyncio.sleep(0.3)
        release.set()
        with pytest.raises(QueueFullError, match="waited for the model"):
            await task

    asyncio.run(go())
    assert live.clip.passes == []


def test_a_cancelled_job_costs_no_forward_pass(made):
    live = Loaded(1)
    answers = together(made(), (live, texts(1)), (live, texts(2)), (live, images(3)), cancel=(0, 2))
    assert isinstance(answers[0], asyncio.CancelledError) and isinstance(answers[2], asyncio.CancelledError)
    assert answers[1].tolist() == [[1, 2]]
    assert live.clip.passes == [("texts", 1)]


def test_a_job_that_fails_leaves_the_thread_alive_and_the_next_answered(made):
    live, engine = Loaded(1), made()
    with pytest.raises(RuntimeError, match="the model broke"):
        asyncio.run(engine.encode(live, texts(BREAK)))
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0).result(5)
    assert engine.alive
    assert asyncio.run(engine.encode(live, texts(7))).tolist() == [[1, 7]]


def test_a_failed_forward_pass_is_told_to_each_of_its_jobs_and_to_no_other(made):
    live, other = Loaded(1), Loaded(2)
    answers = together(made(), (live, texts(1)), (live, texts(BREAK)), (other, texts(2)), (live, images(3)))
    assert isinstance(answers[1], RuntimeError)
    assert answers[2].tolist() == [[2, 2]] and answers[3].tolist() == [[1, 3]]


def test_a_full_queue_is_busy_and_what_waits_is_answered(made):
    live, engine = Loaded(1), made(max_queue=2)
    answers = together(engine, *((live, texts(n)) for n in range(4)))
    assert [isinstance(a, QueueFullError) for a in answers] == [False, False, True, True]
    assert [a[0, 1] for a in answers[:2]] == [0, 1]
    assert asyncio.run(engine.encode(live, texts(9))).tolist() == [[1, 9]]


def test_one_thread_runs_every_model_and_every_call(made):
    one, two, engine = Loaded(1), Loaded(2), made()
    together(engine, *((live, texts(1)) for live in (one, two, one)), *((live, images(1)) for live in (two, one)))
    called = {engine.call(threading.get_ident).result(5) for _ in range(3)}
    assert one.clip.threads == two.clip.threads == called and len(called) == 1
    assert threading.get_ident() not in called


class Runs(Loaded):
    """A model whose texts something else than torch runs, for several threads at once."""

    def __init__(self, run) -> None:
        super().__init__(1)
        self.clip.text_runner = SharedRunner(run, [run, run, run])
        self.clip.image_runners = {}
        self.clip.encode_tokens = lambda tokens: torch.from_numpy(self.clip.text_runner(tokens.numpy()))


def echo(tokens: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(tokens)), tokens[:, 0]], 1).astype(np.float32)


def test_lanes_run_what_torch_does_not_run_at_once_and_torch_stays_in_one_thread(made):
    both, engine = threading.Barrier(2), made(lanes=2, max_wait=0)

    def run(tokens: np.ndarray) -> np.ndarray:
        both.wait(10)  # breaks where no other thread comes
        return echo(tokens)

    live, plain = Runs(run), Loaded(2)
    plain.clip.text_runner, plain.clip.image_runners = None, {}

    async def go() -> list:
        shared = await asyncio.gather(*(engine.encode(live, texts(n)) for n in range(2)))
        return [*shared, *await asyncio.gather(*(engine.encode(plain, texts(n)) for n in range(6)))]

    answers = asyncio.run(go())
    assert [a[0].tolist() for a in answers] == [[1, 0], [1, 1], *([2, n] for n in range(6))]
    assert plain.clip.threads == {engine.call(threading.get_ident).result(5)}


def test_a_small_job_never_waits_for_large_ones_where_there_are_lanes(made):
    """Though each part of a large one takes until the small one is answered, and there are enough large ones for all lanes."""
    answered, engine = threading.Event(), made(lanes=2, max_wait=0, max_batch=8)

    def run(tokens: np.ndarray) -> np.ndarray:
        if len(tokens) > 1 or tokens[0, 0] > 100:
            assert answered.wait(20)
        return echo(tokens)

    live = Runs(run)

    async def go() -> None:
        await engine.encode(live, texts(1))  # small ones come
        large = [asyncio.create_task(engine.encode(live, texts(*range(101, 140)))) for _ in range(3)]
        await asyncio.sleep(0.05)
        for n in range(3):
            assert (await asyncio.wait_for(engine.encode(live, texts(n)), 15)).tolist() == [[1, n]]
        answered.set()
        assert [a[:, 1].tolist() for a in await asyncio.gather(*large)] == [list(range(101, 140))] * 3

    asyncio.run(go())


def test_lanes_share_what_waits_evenly():
    queue, live = JobQueue(64, 16, lanes=2), Runs(echo)
    for n in range(8):
        queue.put(Encoding(live, texts(n), Future()))
    first = queue.get()
    taken = [first]
    while job := queue.get_joining(first, len(taken), 32, 0):
        taken.append(job)
    assert [job.items[0, 0] for job in taken] == [0, 1, 2, 3] and len(queue) == 4


def test_a_finished_job_lets_go_of_its_model(made):
    engine, live = made(), Loaded(1)
    asyncio.run(engine.encode(live, texts(1)))
    gone = weakref.ref(live)
    del live
    for _ in range(20):
        gc.collect()
        if gone() is None:
            return
        time.sleep(0.05)
    raise AssertionError("an idle engine keeps the model of its last job in memory")


def test_a_closed_engine_refuses_jobs_and_fails_those_that_wait():
    engine = Engine("cpu", 1, Metrics(), max_batch=8, max_wait=0, max_queue=8)
    started, release = threading.Event(), threading.Event()
    engine.call(lambda: (started.set(), release.wait(10)))
    started.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    time.sleep(0.1)
    try:
        late = engine.call(lambda: "answered")
    except Exception:
        late = None  # refused at once: good
    release.set()
    closing.join(10)
    assert not engine.alive
    # What was taken in must end: answered, failed or cancelled; a client that waits forever is none of these.
    assert late is None or late.done()


@pytest.mark.parametrize(("count", "seen"), [(1, 1), (3, 4), (5, 8), (32, 32), (33, 64), (130, 130)])
def test_batches_on_an_accelerator_come_in_few_sizes_and_the_padding_is_cut_off(count, seen):
    live = Loaded(1, device="mps")
    assert encode(live, images(*range(count)))[:, 1].tolist() == list(range(count))
    assert encode(live, texts(*range(count)))[:, 1].tolist() == list(range(count))
    assert live.clip.passes == [("images", seen), ("texts", seen)]


def test_the_batch_metrics_say_what_was_run(made):
    live, engine = Loaded(1), made()
    together(engine, (live, texts(1, 2)), (live, texts(3)), (live, images(1)))
    value = engine.metrics.registry.get_sample_value
    assert value("clipft_items_total", {"domain": "general", "kind": "texts"}) == 3
    assert value("clipft_batch_items_count", {"kind": "texts"}) == 1 and value("clipft_batch_items_sum", {"kind": "texts"}) == 3
    assert value("clipft_inference_seconds_count", {"kind": "images"}) == 1
    assert value("clipft_queue_jobs") == 0
