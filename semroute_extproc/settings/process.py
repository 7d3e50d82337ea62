"""The process itself: gRPC server, encoder, admin page, telemetry. Changes need a restart. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from semroute_extproc.settings.base import Model

PORT_MAX = 65_535
"""Largest TCP port."""

WORKERS_MAX = 64
"""Most worker processes of one sidecar."""

WORKER = "{worker}"
"""Placeholder in `server.listen` for a worker's number."""


class Server(Model):
    """The gRPC side. A change needs a restart."""

    listen: str = Field(
        "unix:/run/semroute/w{worker}.sock",
        pattern=r"^(unix:.+|unix-abstract:.+|.+:[0-9]{1,5})$",
        description="`unix:/path` or `host:port` for Envoy's gRPC stream; `{worker}` is the worker's number.",
    )
    workers: int = Field(
        1, ge=1, le=WORKERS_MAX, description="Worker processes, each with a socket and a model of its own."
    )
    deadline_ms: float = Field(
        100, gt=0, le=10_000, description="Time for one decision, queue and encoder included."
    )
    body_bytes_max: int = Field(
        32 * 1024 * 1024, ge=1_024, le=1024 * 1024 * 1024, description="Bodies above get 413."
    )
    streams_max: int = Field(4_096, ge=1, le=1_048_576, description="Requests in flight at once.")
    drain_seconds: float = Field(
        5, ge=0, le=600, description="After SIGTERM: how long to report NOT_SERVING and still serve."
    )
    allow_mode_override: bool = Field(
        True, description="Envoy's filter has allow_mode_override, so a body may be asked for."
    )

    @model_validator(mode="after")
    def _sockets(self) -> Server:
        if self.workers > 1 and WORKER not in self.listen:
            raise ValueError(f"several workers need a socket each: write {WORKER} in listen")
        return self

    def address(self, worker: int) -> str:
        """The address a worker listens on."""
        return self.listen.replace(WORKER, str(worker))


class Encoder(Model):
    """The bundle and where it runs. A change needs a restart."""

    bundle: str | None = Field(None, description="Directory of a bundle; default: the shipped one.")
    by_language: dict[Annotated[str, StringConstraints(pattern="^[a-z]{2}$")], str] | None = Field(
        None,
        max_length=8,
        description="Language (ISO 639-1) to its bundle; default: the shipped ones.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="`cuda` refuses to start without a GPU.")
    threads: int | None = Field(
        None, ge=1, le=256, description="Worker threads per process; default: cores over workers, 1 on a GPU."
    )
    queue_max: int = Field(
        256, ge=1, le=65_536, description="Texts that may wait; beyond it, requests fall back."
    )
    cache_entries: int = Field(
        2_048, ge=0, le=1_048_576, description="Texts whose signals are cached, 6 KB each; 0 for none."
    )


class Admin(Model):
    """The HTTP side. A change needs a restart."""

    listen: str | None = Field(
        "127.0.0.1:9090",
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]*):[0-9]{1,5}$",
        description="`host:port` of health, metrics and config; null for none.",
    )

    @model_validator(mode="after")
    def _port(self) -> Admin:
        if self.listen is not None and int(self.listen.rpartition(":")[2]) > PORT_MAX:
            raise ValueError(f"the port is above {PORT_MAX}")
        return self


class Telemetry(Model):
    """Logs and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: console on a terminal, JSON otherwise."
    )
    log_decisions: bool = Field(True, description="One line per decision.")
    log_prompts: bool = Field(False, description="Add the classified text to that line.")
    otlp_endpoint: str | None = Field(
        None, description="OTLP/gRPC collector for spans; OTEL_EXPORTER_OTLP_ENDPOINT also sets it."
    )
