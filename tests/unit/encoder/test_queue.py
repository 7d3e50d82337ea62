"""The queue in front of the encoder: bounded, deadline-aware, and honest about what it could not do."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from builders import BUNDLE, raw

from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.queue import Batcher
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import EncoderUnavailable


class Model:
    """A model that takes its time; a text's length is its number of ids."""

    bundle = BUNDLE
    provider = "fake"

    def __init__(self, device: str = "cpu", work: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self.framer = self
        self.batches: list[list[int]] = []
        self._work = work

    def frame(self, text: str) -> Framed:
        return Framed([0] * len(text), [0.0] * 12, len(text), False, 0.0)

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        self.batches.append([len(framed.ids) for framed in batch])
        self._work()
        return [raw(tokens=framed.tokens) for framed in batch]


@asynccontextmanager
async def batcher(model: Model, lanes: int = 1, queue_max: int = 100) -> AsyncIterator[Batcher]:
    subject: Any = Batcher(model, lanes, queue_max)  # type: ignore[arg-type]
    try:
        yield subject
    finally:
        await subject.close()


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_every_text_gets_its_own_output() -> None:
    async with batcher(Model(), lanes=2) as subject:
        texts = ["x" * n for n in range(1, 40)]
        outputs = await asyncio.gather(*(subject.encode(text, soon()) for text in texts))
    assert [output.tokens for output in outputs] == [len(text) for text in texts]


async def test_on_the_cpu_one_text_is_one_pass() -> None:
    model = Model()
    async with batcher(model) as subject:
        await asyncio.gather(*(subject.encode("x" * n, soon()) for n in range(1, 9)))
    assert all(len(batch) == 1 for batch in model.batches)


async def test_on_a_gpu_waiting_texts_share_a_pass_and_outputs_stay_with_their_texts() -> None:
    model = Model("cuda", lambda: time.sleep(0.02))
    async with batcher(model) as subject:
        lengths = [5, 300, 7, 1, 200, 3]
        outputs = await asyncio.gather(*(subject.encode("x" * n, soon()) for n in lengths))
    assert [output.tokens for output in outputs] == lengths
    assert len(model.batches) < len(lengths)


async def test_as_many_passes_run_at_once_as_there_are_lanes() -> None:
    barrier = threading.Barrier(3, timeout=5)
    async with batcher(Model(work=lambda: barrier.wait() and None), lanes=3) as subject:
        await asyncio.gather(*(subject.encode("x", soon()) for _ in range(3)))


async def test_a_lane_that_is_done_does_not_wait_for_the_event_loop_to_hand_it_more() -> None:
    last = threading.Event()
    model = Model(work=lambda: last.set() if len(model.batches) == 3 else None)
    async with batcher(model) as subject:
        tasks = [asyncio.create_task(subject.encode("x" * n, soon())) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        assert last.wait(5), "the loop stands still here, and the lane waits for it"
        await asyncio.gather(*tasks)
    assert model.batches == [[1], [2], [3]]


async def test_many_lanes_run_each_text_once() -> None:
    model = Model()
    async with batcher(model, lanes=8, queue_max=1000) as subject:
        texts = ["x" * n for n in range(1, 301)]
        outputs = await asyncio.gather(*(subject.encode(text, soon()) for text in texts))
    assert [output.tokens for output in outputs] == list(range(1, 301))
    assert sorted(length for [length] in model.batches) == list(range(1, 301))


async def test_a_full_queue_refuses_at_once() -> None:
    release = threading.Event()
    async with batcher(Model(work=lambda: release.wait(5) and None), queue_max=2) as subject:
        tasks = [asyncio.create_task(subject.encode("x", soon()))]
        await asyncio.sleep(0.05)  # one runs, two wait
        tasks += [asyncio.create_task(subject.encode("x", soon())) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(EncoderUnavailable, match="overloaded"):
            await subject.encode("x", soon())
        release.set()
        await asyncio.gather(*tasks)


async def test_a_deadline_ends_the_wait() -> None:
    release = threading.Event()
    async with batcher(Model(work=lambda: release.wait(5) and None)) as subject:
        started = time.monotonic()
        with pytest.raises(EncoderUnavailable, match="deadline"):
            await subject.encode("x", soon(0.05))
        assert time.monotonic() - started < 1.0
        release.set()


async def test_work_whose_caller_has_gone_or_whose_time_has_passed_is_not_run() -> None:
    release = threading.Event()
    model = Model(work=lambda: release.wait(5) and None)
    async with batcher(model) as subject:
        first = asyncio.create_task(subject.encode("x", soon()))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(subject.encode("xx", soon()))
        late = asyncio.create_task(subject.encode("xxx", soon(0.05)))
        last = asyncio.create_task(subject.encode("xxxx", soon()))
        await asyncio.sleep(0.1)
        gone.cancel()
        release.set()
        await asyncio.gather(first, last)
        with pytest.raises(EncoderUnavailable, match="deadline"):
            await late
    assert model.batches == [[1], [4]]


async def test_a_text_whose_time_has_passed_is_not_run_by_a_free_lane_either() -> None:
    model = Model()
    async with batcher(model) as subject:
        with pytest.raises(EncoderUnavailable, match="deadline"):
            await subject.encode("x", soon(-0.01))
        assert (await subject.encode("xx", soon())).tokens == 2
    assert model.batches == [[2]]


async def test_a_lane_that_waits_keeps_nothing_of_its_last_pass() -> None:
    async with batcher(Model()) as subject:
        output = await subject.encode("x", soon())
        kept = weakref.ref(output.embedding)
        del output
        await asyncio.sleep(0.05)  # the lane has gone back to its wait
        gc.collect()
        assert kept() is None


async def test_a_failed_pass_fails_its_texts_and_the_lane_goes_on() -> None:
    failures = iter([RuntimeError("broken"), None])

    def work() -> None:
        if error := next(failures):
            raise error

    async with batcher(Model(work=work)) as subject:
        with pytest.raises(EncoderUnavailable, match="error"):
            await subject.encode("x", soon())
        assert (await subject.encode("xx", soon())).tokens == 2


async def test_closing_tells_those_who_wait() -> None:
    release = threading.Event()
    subject: Any = Batcher(Model(work=lambda: release.wait(5) and None), 1, 10)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(subject.encode("x", soon())) for _ in range(2)]
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(subject.close())
    await asyncio.sleep(0.05)
    release.set()
    await closing
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EncoderUnavailable)
    with pytest.raises(EncoderUnavailable, match="closed"):
        await subject.encode("x", soon())


async def test_a_panic_of_a_library_does_not_take_the_lane_with_it() -> None:
    """Rust's panics arrive as BaseException."""

    class Panic(BaseException):
        pass

    def panic_once() -> None:
        if len(model.batches) == 1:
            raise Panic

    model = Model(work=panic_once)
    async with batcher(model) as subject:
        with pytest.raises(EncoderUnavailable, match="error"):
            await subject.encode("x", soon())
        assert (await subject.encode("xx", soon())).tokens == 2


async def test_what_would_come_out_late_is_refused_on_arrival_and_not_run() -> None:
    """A pass takes 50 ms here, so of ten texts with 200 ms each about four can be done."""
    model = Model(work=lambda: time.sleep(0.05))
    async with batcher(model) as subject:
        for _ in range(4):
            await subject.encode("x", soon())  # it learns its own speed
        model.batches.clear()
        results = await asyncio.gather(
            *(subject.encode("x", soon(0.2)) for _ in range(10)), return_exceptions=True
        )
    refused = [result.cause for result in results if isinstance(result, EncoderUnavailable)]
    done = [result for result in results if isinstance(result, RawOutput)]
    assert 1 <= len(done) <= 4
    assert refused.count("overloaded") >= 5
    assert len(model.batches) <= len(done) + 1, "a pass was run whose result came too late"


async def test_a_slow_moment_is_unlearnt() -> None:
    """However slow the last passes were, a free lane tries."""
    slow = iter([0.3, 0.3])
    async with batcher(Model(work=lambda: time.sleep(next(slow, 0.0)))) as subject:
        for _ in range(2):
            await subject.encode("x", soon())
        for _ in range(20):
            await subject.encode("x", soon(0.2))
        outputs = await asyncio.gather(*(subject.encode("x", soon(0.2)) for _ in range(5)))
    assert len(outputs) == 5


async def test_a_caller_who_goes_leaves_no_place_taken() -> None:
    release = threading.Event()
    async with batcher(Model(work=lambda: release.wait(5) and None), queue_max=1) as subject:
        first = asyncio.create_task(subject.encode("x", soon()))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(subject.encode("xx", soon()))
        await asyncio.sleep(0.05)
        assert subject.waiting == 1
        gone.cancel()
        await asyncio.sleep(0.05)
        assert subject.waiting == 0
        second = asyncio.create_task(subject.encode("x", soon()))
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(first, second)
