"""A page that is read and asked all the time does not slow the decisions.

`pytest tests/e2e/test_page_load.py -s` prints the figures of docs/performance.md.
"""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from pathlib import Path

import httpx2
import pytest
from semroute_bench import load
from semroute_bench.measuring import cpu_seconds
from semroute_bench.servers import Measured, Target

ROUNDS, REQUESTS = 6, 120
POLLED = ("/", "/ui/decisions", "/ui/pools", "/ui/frontier")


class Readers:
    """One polls the views each second, another asks for explanations as fast as it gets them."""

    def __init__(self, url: str) -> None:
        self.views = self.explanations = 0
        self._http, self._stop = httpx2.Client(base_url=url, timeout=30), threading.Event()

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._stop.clear()
        threads = [threading.Thread(target=each) for each in (self._poll, self._explain)]
        for thread in threads:
            thread.start()
        yield
        self._stop.set()
        for thread in threads:
            thread.join()

    def _poll(self) -> None:
        while not self._stop.is_set():
            for path in POLLED:
                assert self._http.get(path).status_code == 200
                self.views += 1
            self._stop.wait(1.0)

    def _explain(self) -> None:
        while not self._stop.is_set():
            form = {"model": "auto", "text": f"{self.explanations} {load.PROMPT}"}
            answer = self._http.post("/ui/explain", data=form)
            assert answer.status_code == 200
            assert "Text that was judged" in answer.text
            self.explanations += 1


@pytest.mark.parametrize("model", [load.NAMED, load.ROUTED])
async def test_decisions_take_as_long_while_the_page_is_read_and_explains(tmp_path: Path, model: str) -> None:
    request = load.exchange(load.chat(model))
    count = REQUESTS if model == load.ROUTED else 10 * REQUESTS
    sidecar = Measured(tmp_path / "s", encoder__cache_entries="0", server__deadline_ms="2000")
    readers, taken, cpu = Readers(f"http://{sidecar.admin}"), {}, {}
    async with AsyncExitStack() as exits:
        target = await Target.of(sidecar, exits)
        await target.send(request, 50, 1)
        for name in ("alone", "read") * ROUNDS:
            with readers.reading() if name == "read" else nullcontext():
                before = cpu_seconds(*target.pids)
                answers = await target.send(request, count, 1)
                cpu.setdefault(name, []).append((cpu_seconds(*target.pids) - before) / count * 1e3)
            assert {answer.outcome for answer in answers} == {"named" if model == load.NAMED else "routed"}
            taken.setdefault(name, []).extend(answer.ms for answer in answers)
    assert readers.views > ROUNDS
    assert readers.explanations > ROUNDS
    cuts = {name: statistics.quantiles(values, n=100) for name, values in taken.items()}
    found = {
        name: {
            "p50": round(each[49], 2),
            "p99": round(each[98], 2),
            "cpu": round(statistics.median(cpu[name]), 2),
        }
        for name, each in cuts.items()
    }
    print(json.dumps({model: found, "views": readers.views, "explanations": readers.explanations}))
    # Loose, because other work on a test machine moves both.
    assert found["read"]["p50"] < 2 * found["alone"]["p50"] + 5
    assert found["read"]["p99"] < 3 * found["alone"]["p99"] + 50
