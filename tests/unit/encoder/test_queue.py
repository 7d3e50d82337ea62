"""The queue in front of the encoder: bounded, deadline-aware, and honest about what it could not do."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, repeat
from time import perf_counter
from typing import Any

import pytest
from builders import BUNDLE, raw
from fake_gpu import Gpu

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.queue import FAILURES_MAX, PASS_UNITS, EncodeQueue, PassTime
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.events import Emit, EncoderLost, Event, OutOfMemory, ignore

SHIPPED = bundle.load(bundle.default_bundle())
NAME = SHIPPED.manifest.name


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


class Held(Model):
    """A model whose passes end when `release` is set."""

    def __init__(self, device: str = "cpu") -> None:
        self.release = threading.Event()
        super().__init__(device, lambda: self.release.wait(5) and None)


@asynccontextmanager
async def queue(
    model: Any, threads: int = 1, queue_max: int = 100, emit: Emit = ignore, niceness: int = 0
) -> AsyncIterator[EncodeQueue]:
    subject = EncodeQueue(model, threads, queue_max, emit, niceness)
    try:
        yield subject
    finally:
        await subject.close()


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def start(subject: EncodeQueue, *texts: str) -> list[asyncio.Task[RawOutput]]:
    """Tasks that are in the queue after one turn of the loop."""
    return [asyncio.create_task(subject.encode(text, soon())) for text in texts]


async def result(subject: EncodeQueue, seconds: float = 5.0, count: int = 1) -> list[str]:
    """The results of `count` texts at once: `done`, or the cause."""
    found = await asyncio.gather(
        *(subject.encode("text", soon(seconds)) for _ in range(count)), return_exceptions=True
    )
    return [each.cause.value if isinstance(each, EncoderUnavailable) else "done" for each in found]


async def test_every_text_gets_its_own_output() -> None:
    async with queue(Model(), threads=2) as subject:
        texts = ["x" * n for n in range(1, 40)]
        outputs = await asyncio.gather(*(subject.encode(text, soon()) for text in texts))
    assert [output.tokens for output in outputs] == [len(text) for text in texts]


async def test_on_the_cpu_one_text_is_one_pass() -> None:
    model = Model()
    async with queue(model) as subject:
        await asyncio.gather(*(subject.encode("x" * n, soon()) for n in range(1, 9)))
    assert all(len(batch) == 1 for batch in model.batches)


async def test_on_a_gpu_waiting_texts_share_a_pass_and_outputs_stay_with_their_texts() -> None:
    model = Held("cuda")
    lengths = [5, 300, 7, 1, 200, 3]
    async with queue(model) as subject:
        tasks = start(subject, *("x" * n for n in lengths))
        await asyncio.sleep(0)
        model.release.set()
        outputs = await asyncio.gather(*tasks)
    assert [output.tokens for output in outputs] == lengths
    assert model.batches == [lengths[:1], lengths[1:]]


async def test_as_many_passes_run_at_once_as_there_are_threads() -> None:
    barrier = threading.Barrier(3, timeout=5)
    async with queue(Model(work=lambda: barrier.wait() and None), threads=3) as subject:
        await asyncio.gather(*(subject.encode("x", soon()) for _ in range(3)))


async def test_the_event_loop_goes_before_the_threads() -> None:
    found: list[int] = []
    model = Model(work=lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    async with queue(model, threads=2, niceness=5) as subject:
        await subject.encode("text", soon())
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert found == [min(before + 5, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_a_thread_that_is_done_does_not_wait_for_the_event_loop_to_hand_it_more() -> None:
    last = threading.Event()
    model = Model(work=lambda: last.set() if len(model.batches) == 3 else None)
    async with queue(model) as subject:
        tasks = start(subject, "x", "xx", "xxx")
        await asyncio.sleep(0)
        assert last.wait(5), "the loop is blocked here, and the thread waits for it"
        await asyncio.gather(*tasks)
    assert model.batches == [[1], [2], [3]]


async def test_many_threads_run_each_text_once() -> None:
    model = Model()
    async with queue(model, threads=8, queue_max=1000) as subject:
        texts = ["x" * n for n in range(1, 301)]
        outputs = await asyncio.gather(*(subject.encode(text, soon()) for text in texts))
    assert [output.tokens for output in outputs] == list(range(1, 301))
    assert sorted(length for [length] in model.batches) == list(range(1, 301))


async def test_a_full_queue_refuses_at_once() -> None:
    model = Held()
    async with queue(model, queue_max=2) as subject:
        tasks = start(subject, "x", "x", "x")
        await asyncio.sleep(0)  # one runs, two wait
        assert await result(subject) == ["overloaded"]
        model.release.set()
        await asyncio.gather(*tasks)


async def test_a_deadline_ends_the_wait() -> None:
    model = Held()
    async with queue(model) as subject:
        assert await result(subject, 0.05) == ["deadline"]
        assert not model.release.is_set()
        model.release.set()


async def test_work_whose_caller_has_gone_or_whose_time_has_passed_is_not_run() -> None:
    model = Held()
    async with queue(model) as subject:
        [first, gone] = start(subject, "x", "xx")
        late = asyncio.create_task(subject.encode("xxx", soon(0.05)))
        [last] = start(subject, "xxxx")
        with pytest.raises(EncoderUnavailable, match="deadline"):
            await late
        gone.cancel()
        await asyncio.sleep(0)
        model.release.set()
        await asyncio.gather(first, last)
    assert model.batches == [[1], [4]]


async def test_a_text_whose_time_has_passed_is_not_run_by_a_free_thread_either() -> None:
    model = Model()
    async with queue(model) as subject:
        assert await result(subject, -0.01) == ["deadline"]
        assert (await subject.encode("xx", soon())).tokens == 2
    assert model.batches == [[2]]


async def test_a_thread_that_waits_keeps_nothing_of_its_last_pass() -> None:
    async with queue(Model()) as subject:
        output = await subject.encode("x", soon())
        kept = weakref.ref(output.embedding)
        del output
        async with asyncio.timeout(5):
            while kept() is not None:  # the thread goes back to its wait
                await asyncio.sleep(0.001)
                gc.collect()


async def test_a_failed_pass_fails_its_texts_and_the_thread_goes_on() -> None:
    failures = iter([RuntimeError("broken"), None])

    def work() -> None:
        if error := next(failures):
            raise error

    async with queue(Model(work=work)) as subject:
        assert await result(subject) == ["error"]
        assert await result(subject) == ["done"]


async def test_closing_tells_those_who_wait() -> None:
    model = Held()
    subject: Any = EncodeQueue(model, 1, 10)  # type: ignore[arg-type]
    tasks = start(subject, "x", "x")
    await asyncio.sleep(0)
    closing = asyncio.create_task(subject.close())
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(found, EncoderUnavailable)
    model.release.set()
    await closing
    assert await result(subject) == ["closed"]


async def test_a_panic_of_a_library_does_not_take_the_thread_with_it() -> None:
    """Rust's panics arrive as BaseException."""

    class Panic(BaseException):
        pass

    def panic_once() -> None:
        if len(model.batches) == 1:
            raise Panic

    model = Model(work=panic_once)
    async with queue(model) as subject:
        assert await result(subject) == ["error"]
        assert await result(subject) == ["done"]


def measured(monkeypatch: pytest.MonkeyPatch, seconds: Iterable[float]) -> None:
    """Each pass seems to have taken the next of `seconds`."""
    readings = chain.from_iterable((0.0, each) for each in seconds)
    monkeypatch.setattr("semroute_extproc.encoder.queue.perf_counter", lambda: next(readings))


async def test_what_would_come_out_late_is_refused_on_arrival_and_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass takes 1 s, so of ten texts with 4 s each about four can be done."""
    measured(monkeypatch, repeat(1.0))
    model = Held()
    model.release.set()
    async with queue(model) as subject:
        for _ in range(4):
            await subject.encode("x", soon())  # it learns its own speed
        model.batches.clear()
        model.release.clear()
        texts = asyncio.create_task(result(subject, 4.0, count=10))
        while subject.waiting == 0:
            await asyncio.sleep(0)
        model.release.set()
        found = await texts
    assert 3 <= found.count("done") <= 4
    assert found.count("done") + found.count("overloaded") == 10
    assert len(model.batches) == found.count("done")


async def test_a_slow_moment_is_unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the last passes were, a free thread tries."""
    measured(monkeypatch, chain([8.0, 8.0], repeat(0.0)))
    async with queue(Model()) as subject:
        for _ in range(2):
            await subject.encode("x", soon())
        assert await result(subject, 5.0, count=5) != ["done"] * 5
        for _ in range(20):
            await subject.encode("x", soon(5.0))
        assert await result(subject, 5.0, count=5) == ["done"] * 5


async def test_a_caller_who_goes_leaves_no_place_taken() -> None:
    model = Held()
    async with queue(model, queue_max=1) as subject:
        [first, gone] = start(subject, "x", "xx")
        await asyncio.sleep(0)
        assert subject.waiting == 1
        gone.cancel()
        await asyncio.sleep(0)
        assert subject.waiting == 0
        [second] = start(subject, "x")
        await asyncio.sleep(0)
        model.release.set()
        await asyncio.gather(first, second)


@pytest.fixture
def stalled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that has not ended yet has ended too late."""
    monkeypatch.setattr("semroute_extproc.encoder.queue.STALL_SECONDS_MAX", 0.0)


DEVICE_SPEED = 10
"""Of the simulated device, as a multiple of this machine's CPU."""


def recorded_seconds() -> dict[int, float]:
    """Texts to the seconds of a pass on the simulated device: the GPU's own graph, timed here on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(SHIPPED.graph("cuda")), providers=["CPUExecutionProvider"])
    model = CudaModel(SHIPPED, session)
    seconds = {}
    for texts in (1, 4, 16, 64, 128):
        batch = [model.framer.frame("one two three")] * min(texts, 16)
        model.run(batch)
        started = perf_counter()
        model.run(batch)
        seconds[texts] = (perf_counter() - started) * texts / len(batch) / DEVICE_SPEED
    return seconds


class TestGpu:
    """What a GPU's failures cost, and when it is lost."""

    async def test_as_many_texts_share_a_pass_as_arrive_during_the_one_before(self) -> None:
        clients, rounds = 64, 8
        gpu = Gpu(recorded_seconds())
        async with queue(CudaModel(SHIPPED, gpu)) as subject:

            async def client(text: str) -> list[RawOutput]:
                return [await subject.encode(text, soon(30)) for _ in range(rounds)]

            outputs = await asyncio.gather(*(client("word " * n) for n in range(1, clients + 1)))
        texts = [count for count, _ in gpu.shapes]
        assert sum(texts) == clients * rounds
        assert len(texts) <= 2 * rounds + 1  # the first pass starts with one text
        for each in outputs:
            assert len({output.tokens for output in each}) == 1

    async def test_a_pass_without_memory_loses_no_text(self) -> None:
        gpu, emitted = Gpu(), list[Event]()
        gpu.texts_max = 3
        async with queue(CudaModel(SHIPPED, gpu), emit=emitted.append) as subject:
            assert await result(subject, count=40) == ["done"] * 40
        assert set(emitted) == {OutOfMemory(NAME)}

    async def test_one_failure_costs_its_texts_their_signals_and_no_more(self) -> None:
        gpu, emitted = Gpu(), list[Event]()
        async with queue(CudaModel(SHIPPED, gpu), emit=emitted.append) as subject:
            for _ in range(FAILURES_MAX):
                gpu.there = False
                assert await result(subject) == ["error"]
                gpu.there = True
                assert await result(subject) == ["done"]
        assert emitted == []

    @pytest.mark.parametrize("change", [{"there": False}, {"texts_max": 0}])
    async def test_a_gpu_that_keeps_failing_is_lost_once_and_texts_fall_back_at_once(
        self, change: dict[str, Any]
    ) -> None:
        gpu, emitted = Gpu(), list[Event]()
        vars(gpu).update(change)
        async with queue(CudaModel(SHIPPED, gpu), emit=emitted.append) as subject:
            for _ in range(FAILURES_MAX):
                assert emitted == []
                assert await result(subject) == ["error"]
            lost = EncoderLost(NAME, f"{FAILURES_MAX} passes in a row failed")
            assert emitted == [lost]
            vars(gpu).update(vars(Gpu()))
            assert await result(subject, count=100) == ["error"] * 100
        assert (emitted, gpu.shapes) == ([lost], [])

    @pytest.mark.usefixtures("stalled_at_once")
    async def test_a_driver_that_hangs_loses_the_gpu_and_everything_that_waits_falls_back(self) -> None:
        gpu, emitted = Gpu(), list[Event]()
        gpu.answers.clear()
        async with queue(CudaModel(SHIPPED, gpu), emit=emitted.append) as subject:
            running = asyncio.create_task(result(subject))
            await asyncio.sleep(0)
            for _ in range(2):
                assert await result(subject) == ["error"]
            assert await running == ["error"]
            gpu.answers.set()
        assert emitted == [EncoderLost(NAME, "no pass has ended for 0 seconds")]

    async def test_a_hang_that_is_short_loses_nothing(self) -> None:
        gpu, emitted = Gpu(), list[Event]()
        gpu.answers.clear()
        async with queue(CudaModel(SHIPPED, gpu), emit=emitted.append) as subject:
            assert await result(subject, 0.01) == ["deadline"]
            gpu.answers.set()
            assert await result(subject) == ["done"]
        assert emitted == []

    @pytest.mark.usefixtures("stalled_at_once")
    async def test_texts_that_come_too_late_beside_others_in_time_do_not_lose_the_gpu(self) -> None:
        emitted: list[Event] = []
        async with queue(CudaModel(SHIPPED, Gpu()), emit=emitted.append) as subject:
            for _ in range(5):
                assert await result(subject, -0.01) == ["deadline"]
                assert await result(subject) == ["done"]
        assert emitted == []

    async def test_a_text_that_cannot_be_framed_is_not_the_devices_fault(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emitted: list[Event] = []
        model = Model("cuda")
        async with queue(model, emit=emitted.append) as subject:
            with monkeypatch.context() as patch:
                patch.setattr(model, "frame", lambda _: 1 / 0)
                for _ in range(FAILURES_MAX + 1):
                    assert await result(subject) == ["error"]
            assert await result(subject) == ["done"]
        assert emitted == []

    @pytest.mark.usefixtures("stalled_at_once")
    async def test_on_the_cpu_nothing_is_ever_lost(self) -> None:
        broken, release, emitted = True, threading.Event(), list[Event]()

        def work() -> None:
            if broken:
                raise RuntimeError
            release.wait(5)

        async with queue(Model(work=work), emit=emitted.append) as subject:
            for _ in range(FAILURES_MAX + 1):
                assert await result(subject) == ["error"]
            broken = False
            tasks = start(subject, "x", "x", "x")
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(*tasks)
        assert emitted == []


class TestPassTime:
    """How long a pass is expected to take."""

    async def test_work_grows_with_the_text_up_to_the_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        learned: list[float] = []
        monkeypatch.setattr(PassTime, "learn", lambda _, seconds, units: learned.append(units))
        async with queue(Model()) as subject:
            for characters in (0, 40, 100_000):
                await subject.encode("x" * characters, soon())
        window = BUNDLE.manifest.encoder.window
        assert learned == [PASS_UNITS, PASS_UNITS + 10, PASS_UNITS + window]

    def test_before_the_first_pass_nothing_is_expected(self) -> None:
        assert (PassTime().mean, PassTime().high) == (0.0, 0.0)

    def test_a_steady_pace_is_learned(self) -> None:
        subject = PassTime()
        for _ in range(100):
            subject.learn(0.5, 50)
        assert subject.mean == pytest.approx(0.01)
        assert subject.high == pytest.approx(0.01, rel=1e-3)

    def test_an_unsteady_pace_is_expected_to_be_slow_at_times(self) -> None:
        subject = PassTime()
        for number in range(200):
            subject.learn(1.0 if number % 2 else 3.0, 1)
        assert 1.5 < subject.mean < 2.5
        assert subject.high > 3.0
