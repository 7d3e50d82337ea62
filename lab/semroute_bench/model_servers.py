"""Real model servers as child processes: Triton from nvidia-pytriton's wheel, and MLServer.

Each runs in an environment of its own, see `make test-remote`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from semroute_demo.process import Process, free_port

READY = {"triton": b"Started GRPCInferenceService", "mlserver": b"gRPC server running"}
"""Kind to what its log says once it answers."""

READY_SECONDS_MAX = 120.0


class ModelServer:
    """A server of a model repository, on a loopback port that it keeps."""

    def __init__(self, kind: str, environment: Path, repository: Path, folder: Path) -> None:
        """`environment` is where `requirements/{kind}.txt` is installed; `folder` gets the log."""
        self._ready, self._log, self.port = READY[kind], folder / f"{kind}.log", free_port()
        folder.mkdir(parents=True, exist_ok=True)
        command = _triton if kind == "triton" else _mlserver
        arguments, variables = command(environment, repository, folder, self.port)
        path = f"{environment / 'bin'}:{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "PYTHONPATH": "", **variables}
        self.process = Process(kind, arguments, self._log, environment=variables)

    @property
    def url(self) -> str:
        """For `encoder.remote.url`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until its models are loaded; raises `ProcessError` with the log's end."""
        before = self._log.stat().st_size if self._log.exists() else 0
        self.process.start(lambda: self._ready in self._log.read_bytes()[before:], READY_SECONDS_MAX)


def _triton(
    environment: Path, repository: Path, folder: Path, port: int
) -> tuple[list[str], Mapping[str, str]]:
    [site] = environment.glob("lib/python3.*/site-packages")
    triton, version = site / "pytriton" / "tritonserver", site.parent.name.removeprefix("python")
    backends = folder / "backends"
    # The wheel has a stub for each version of Python; the backend wants one next to its library.
    if not backends.exists():
        (backends / "python").mkdir(parents=True)
        stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        for file in (*(triton / "backends" / "python").iterdir(), stub):
            (backends / "python" / file.name).symlink_to(file)
    arguments = [str(triton / "bin" / "tritonserver"), "--model-repository", str(repository)]
    arguments += ["--backend-directory", str(backends), "--grpc-address", "127.0.0.1"]
    arguments += ["--grpc-port", str(port), "--allow-http", "false", "--allow-metrics", "false"]
    libraries = str(site / "nvidia_pytriton.libs")
    return arguments, {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(site)}


def _mlserver(
    environment: Path, repository: Path, folder: Path, port: int
) -> tuple[list[str], Mapping[str, str]]:
    ports = {"GRPC": port, "HTTP": free_port(), "METRICS": free_port()}
    own = {f"MLSERVER_{name}_PORT": str(number) for name, number in ports.items()}
    own |= {"MLSERVER_HOST": "127.0.0.1", "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return [str(environment / "bin" / "mlserver"), "start", str(repository)], own
