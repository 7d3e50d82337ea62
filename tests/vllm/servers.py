"""Real vLLM servers as pools: start one, look at its gauges, end it in each way that servers end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from semroute_demo.process import Process, free_port
from tiny_model import CONTEXT

from semroute_extproc.state.pool_metrics import Load, read_page

START_SECONDS_MAX = 600.0
"""How long a server may take to be ready: 20 s of work, of which a busy machine makes minutes."""

ANSWER_SECONDS_MAX = 30.0
"""How long one answer to ourselves may take."""

SEQUENCES = 4
"""Requests a server runs at once; more of them wait."""

QUEUE = 12
"""Requests a server holds at once, running and waiting; one more gets 503."""

KV_BLOCKS = 64
"""Of 128 tokens: a cache so small that a few requests show in its gauge."""

CONTEXTS = {"small": 4_096, "large": CONTEXT}
"""The small server has room for less, so that a prompt may fit the other one alone."""

SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # GiB, and required: the default takes nearly all memory that it sees.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Without both, workers wait for each other in busy loops and starve whoever shares the cores.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    # Otherwise vLLM keeps no response, and `previous_response_id` finds none.
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
"""Environment of a server on few cores without a network."""


class Server:
    """One vLLM server with the tiny model under `name`, on a port that it keeps when started again."""

    def __init__(self, python: str, model: Path, name: str, folder: Path, core: int) -> None:
        self.name = name
        self.port = free_port()
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", f"{name}-model"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--dtype", "bfloat16", "--enforce-eager", "--max-model-len", str(CONTEXTS[name])),
            *("--max-num-seqs", str(SEQUENCES), "--max-num-queued-reqs", str(QUEUE)),
            *("--num-gpu-blocks-override", str(KV_BLOCKS), "--distributed-executor-backend", "uni"),
            "--disable-uvicorn-access-log",
        ]
        environment = {**os.environ, **SWITCHES, "VLLM_CPU_OMP_THREADS_BIND": str(core)}
        self.process = Process(f"vLLM {name}", command, folder / f"vllm-{name}.log", environment=environment)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics(self) -> str:
        return f"{self.url}/metrics"

    def start(self) -> None:
        """Start it and wait until it serves; raises `ProcessError` with the log's end."""
        self.process.start(self.ready, START_SECONDS_MAX)

    def ensure(self) -> None:
        """Start it again if a test has ended it."""
        if not self.ready():
            self.stop()
            self.start()

    def ready(self) -> bool:
        try:
            self._get("/health")
        except OSError:
            return False
        return True

    def version(self) -> str:
        return str(json.loads(self._get("/version"))["version"])

    def load(self) -> Load:
        """Its gauges, as the sidecar reads them."""
        return read_page(self._get("/metrics").encode())

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request of our own, past the gateway."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
            return json.load(response)

    def kill(self) -> None:
        """End all its processes at once, as the kernel does when memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def kill_engine(self) -> None:
        """End the process that computes, and leave the one that answers."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "EngineCore"], capture_output=True, text=True
        )
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        assert found.stdout, "no process of that name: the engine runs inside the server"

    def stop(self) -> None:
        """Stop it and whatever it has left behind; safe to call twice."""
        group = self.process.pid
        self.process.stop()
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_SECONDS_MAX) as response:
            return str(response.read(), "utf-8")


class Pools:
    """The two servers. They start one after the other: two at once take longer."""

    def __init__(self, python: str, model: Path, folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.small = Server(python, model, "small", folder, cores[0])
        self.large = Server(python, model, "large", folder, cores[-1])

    def __iter__(self) -> Iterator[Server]:
        return iter((self.small, self.large))

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {f"vllm-{server.name}": ("127.0.0.1", server.port) for server in self}

    @property
    def metrics(self) -> dict[str, str]:
        return {server.name: server.metrics for server in self}

    def ensure(self) -> None:
        for server in self:
            server.ensure()

    def stop(self) -> None:
        for server in self:
            server.stop()


def build_model(python: str, folder: Path) -> None:
    """Write the tiny model into `folder`; raises CalledProcessError."""
    script = Path(__file__).with_name("tiny_model.py")
    command: Sequence[str] = [python, str(script), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, **SWITCHES})
