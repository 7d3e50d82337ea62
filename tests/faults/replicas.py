"""Several sidecars that share a Valkey, each over a link of its own that a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from gateway import CONFIG_PATH, Background
from semroute_bench import load
from semroute_bench.client import ClientError, connect
from semroute_demo.process import Process, wait_until
from semroute_demo.sidecar import Sidecar
from world import start_valkey

from semroute_extproc.envoy._pb import external_processor_pb2 as pb

KEY = "the key of the shared state's tests"
OUTPUT_TOKENS = 400
ANSWER_SECONDS_MAX = 5.0

AGE = "semroute_shared_store_age_seconds"

Mode = Literal["open", "cut", "silent", "garbage"]


class Link:
    """A socket that forwards to Valkey's, or fails in a way."""

    def __init__(self, background: Background, path: Path, target: Path) -> None:
        self._background, self._target, self.mode = background, target, "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = f"unix://{path}"
        background.run(self._listen(path))

    def set(self, mode: Mode) -> None:
        """Change what connections get; those that are open end."""
        self._background.run(self._set(mode))

    async def _set(self, mode: Mode) -> None:
        self.mode = mode
        for writer in self._writers:
            writer.transport.abort()

    async def _listen(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(path))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.mode == "open":
                there, back = await asyncio.open_unix_connection(str(self._target))
                self._writers.add(back)
                await asyncio.gather(_copy(reader, back), _copy(there, writer))
            elif self.mode == "silent":
                while await reader.read(65_536):
                    pass
            while self.mode == "garbage" and await reader.read(65_536):
                writer.write(b"+OK\r\n$-7\r\n\xff\xfe*1\r\n:nonsense\r\n")
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@dataclass
class Replicas:
    """The sidecars, their links, and Valkey."""

    folder: Path
    background: Background
    valkey: Process
    links: list[Link]
    sidecars: list[Sidecar]
    spent: Counter[str] = field(default_factory=Counter)  # By tenant, in tokens.
    answers: Counter[str] = field(default_factory=Counter)  # By tenant.
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: Counter[int] = field(default_factory=Counter)  # Milliseconds, by replica.

    async def traffic(self, number: int, tenant: str, rate: float, stop: asyncio.Event) -> None:
        """Requests for the expensive pool at a replica, until stopped; survives the replica's death."""
        request = exchange(tenant)
        while not stop.is_set():
            with contextlib.suppress(OSError, ClientError, TimeoutError):
                async with connect(self.sidecars[number].socket) as client:
                    while not stop.is_set():
                        answer = await asyncio.wait_for(client.send(request), ANSWER_SECONDS_MAX)
                        facts = facts_of(answer.reply)
                        self.slowest[number] = max(self.slowest[number], answer.ms)
                        self.answers[tenant] += 1
                        self.reasons[str(facts["reason"])] += 1
                        if facts["pool"] == "large":
                            self.spent[tenant] += int(facts["prompt_tokens"]) + OUTPUT_TOKENS
                        await asyncio.sleep(1 / rate)
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def busy(self, tenant: str, *rates: float) -> AsyncIterator[None]:
        """Requests per second of each replica meanwhile."""
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(self.traffic(number, tenant, rate, stop))
            for number, rate in enumerate(rates)
            if rate
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    def metric(self, number: int, name: str) -> float:
        """The sum of a metric's samples at a replica."""
        lines = self.sidecars[number].read_admin("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def repair(self) -> None:
        """Connect all again, and wait until they have noticed."""
        for link in self.links:
            link.set("open")
        wait_until(lambda: all(self.metric(n, AGE) < 2.0 for n in range(len(self.links))), 15, "contact")

    def restart_valkey(self, *, lose: bool) -> None:
        """Kill it, and start it again with its data or without."""
        self.valkey.send(signal.SIGKILL)
        self.valkey.wait(10)
        if lose:
            for file in self.folder.glob("appendonlydir/*"):
                file.unlink()
        self.valkey, _ = start_valkey(self.folder, persist=True)

    def close(self) -> None:
        for sidecar in self.sidecars:
            sidecar.stop()
        self.valkey.stop()
        self.background.close()


def start_replicas(count: int, controllers: Mapping[str, Any], **settings: str) -> Replicas:
    folder = Path(tempfile.mkdtemp(prefix="semroute-state-"))
    background = Background()
    valkey, _ = start_valkey(folder, persist=True)
    config = folder / "semroute.yaml"
    document = yaml.safe_load(CONFIG_PATH.read_text())
    shared = {"store": {"url": "unix:///nowhere", "key": KEY, "replicas": count}}
    document |= {"controllers": {**shared, **controllers}, "accounting": True}
    config.write_text(yaml.safe_dump(document))
    links, sidecars = [], []
    for number in range(count):
        own = folder / f"sidecar-{number}"
        own.mkdir()
        links.append(Link(background, own / "valkey.sock", folder / "valkey.sock"))
        given = {"CONTROLLERS__STORE__URL": links[-1].url, **settings}
        given = {f"SEMROUTE__{key}": value.format(folder=own) for key, value in given.items()}
        sidecars.append(Sidecar(config, own, given))
    running = Replicas(folder, background, valkey, links, sidecars)
    try:
        for sidecar in sidecars:
            sidecar.start()
    except BaseException:
        running.close()
        raise
    return running


def exchange(
    tenant: str, text: str = load.PROMPT, model: str = "auto-strong", **headers: str
) -> load.Exchange:
    """A request of a tenant."""
    found = load.exchange(load.chat(model, text, max_tokens=OUTPUT_TOKENS))
    first = pb.ProcessingRequest.FromString(found.headers)
    for key, value in {"x-semroute-tenant": tenant, **headers}.items():
        first.request_headers.headers.headers.add(key=key.replace("_", "-"), raw_value=value.encode())
    return load.Exchange(first.SerializeToString(), found.body)


def facts_of(reply: bytes) -> dict[str, Any]:
    """The decision in a reply."""
    fields = pb.ProcessingResponse.FromString(reply).dynamic_metadata.fields["semroute"].struct_value.fields
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in fields.items()}
