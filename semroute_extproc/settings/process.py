"""Process settings: gRPC server, encoder, admin page, telemetry, accounting. Pure."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from semroute_extproc.settings.base import FilePath, HeaderNames, Model, PoolName, Share, Url

PORT_MAX = 65_535

GrpcUrl = Annotated[Url, Field(pattern=r"^https?://[^\s/@]+:[0-9]{1,5}$")]

WORKER = "{worker}"  # Placeholder in `server.listen` for the index of a worker


class Server(Model):
    """The gRPC server. A change needs a restart."""

    listen: str = Field(
        "unix:/run/semroute/w{worker}.sock",
        pattern=r"^(unix:.+|unix-abstract:.+|.+:[0-9]{1,5})$",
        description="`unix:/path` or `host:port` for Envoy; `{worker}` is replaced with the worker index.",
    )
    workers: int = Field(1, ge=1, le=64, description="Processes; each has its own socket and model.")
    deadline_ms: float = Field(100, gt=0, le=10_000, description="Decision deadline, queue time included.")
    body_bytes_max: int = Field(32 * 1024**2, ge=1_024, le=1024**3, description="Larger bodies get HTTP 413.")
    path_prefixes: tuple[Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$")], ...] = Field(
        ("/openai", "/anthropic", "/api"), max_length=64, description="Removed in front of a known path."
    )
    streams_max: int = Field(4_096, ge=1, le=1_048_576, description="Maximum number of undecided requests.")
    drain_seconds: float = Field(5, ge=0, le=600, description="Time to serve as NOT_SERVING after SIGTERM.")
    secret: SecretStr | None = Field(None, min_length=16, description="Key of draws; default: a random one.")
    max_headers_count: int = Field(128, ge=32, le=65_536, description="The same as in Envoy.")
    max_request_headers_kb: int = Field(96, ge=32, le=8_192, description="The same as in Envoy.")
    allow_mode_override: bool = Field(True, description="Whether Envoy's filter has `allow_mode_override`.")

    @model_validator(mode="after")
    def _sockets(self) -> Self:
        if self.workers > 1 and WORKER not in self.listen:
            raise ValueError(f"several workers need a socket each: write {WORKER} in listen")
        return self

    def address(self, worker: int) -> str:
        """The address that a worker listens on."""
        return self.listen.replace(WORKER, str(worker))


class RemoteEncoding(Model):
    """A server that runs the bundles' graphs, see docs/scale.md. A change needs a restart."""

    url: GrpcUrl = Field(
        description="gRPC port of a server of the Open Inference Protocol v2: `http://triton:8001`."
    )
    model: str = Field(
        "{bundle}",
        pattern="^[A-Za-z0-9_.{}-]{1,128}$",
        description="Model name at that server; `{bundle}` is replaced with the bundle's name.",
    )
    deadline_ms: float = Field(
        30, gt=0, le=10_000, description="Time for an answer; must be below `server.deadline_ms`."
    )
    fallback: Literal["local", "policy"] = Field(
        "local",
        description="Without an answer: `local` runs the graph here; `policy` decides without signals.",
    )
    hedge_url: GrpcUrl | None = Field(
        None, description="Second server, asked when `url` fails or is slow; the first answer counts."
    )
    hedge_ms: float = Field(10, gt=0, le=10_000, description="Time after which `url` counts as slow.")
    breaker_failures: int = Field(5, ge=1, le=1_000, description="Consecutive failures to pause a server.")
    breaker_seconds: float = Field(5, gt=0, le=3_600, description="Time until a request probes the server.")
    ca_file: FilePath | None = Field(
        None, description="Certificates to trust instead of the system's, for `https`."
    )
    token_file: FilePath | None = Field(
        None, description="File with a bearer token; read again every minute. Needs `https`."
    )

    @model_validator(mode="after")
    def _secure(self) -> Self:
        urls = [self.url, *filter(None, [self.hedge_url])]
        if self.token_file is not None and not all(url.startswith("https:") for url in urls):
            raise ValueError("a token is sent to https URLs only")
        return self


class Encoder(Model):
    """The bundle and its device. A change needs a restart."""

    bundle: str | None = Field(None, description="Directory of a bundle; default: the shipped bundle.")
    by_language: dict[Annotated[str, Field(pattern="^[a-z]{2}$")], str] | None = Field(
        None,
        max_length=64,
        description="ISO 639-1 language to bundle directory; default: the shipped bundles.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="With `cuda`, a GPU is required to start.")
    threads: int | None = Field(
        None, ge=1, le=256, description="Threads per process; default: cores / workers on CPU, 1 on GPU."
    )
    niceness: int = Field(10, ge=0, le=19, description="Of the threads; 0 if other programs share the cores.")
    queue_max: int = Field(256, ge=1, le=65_536, description="Queue size; if full, requests fall back.")
    cache_entries: int = Field(2_048, ge=0, le=1_048_576, description="Cached texts, 6 KB each; 0: no cache.")
    remote: RemoteEncoding | None = None

    @property
    def is_local(self) -> bool:
        """Whether this process runs the graph, always or without an answer of the server."""
        return self.remote is None or self.remote.fallback == "local"


class Admin(Model):
    """The HTTP server. A change needs a restart."""

    listen: str | None = Field(
        "127.0.0.1:9090",
        pattern=r"^(unix:/.+|(\[[0-9A-Fa-f:.]+\]|[^:\s]*):[0-9]{1,5})$",
        description="`host:port` or `unix:/path` for health, metrics and configuration; null: no server.",
    )
    hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}$")], ...] = Field(
        (), max_length=64, description="DNS names that clients may use besides localhost and IP addresses."
    )
    token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Bearer token of every page but `/livez` and `/readyz`: set SEMROUTE__ADMIN__TOKEN.",
    )

    def guards(self) -> dict[str, Any]:
        """Keyword arguments of the admin server: who may read its pages."""
        return {"hosts": self.hosts, "token": self.token.get_secret_value() if self.token else ""}

    @model_validator(mode="after")
    def _port(self) -> Self:
        port = self.listen.rpartition(":")[2] if self.listen else ""
        if port.isdecimal() and int(port) > PORT_MAX:
            raise ValueError(f"the port is above {PORT_MAX}")
        return self


class DecisionLog(Model):
    """Sampled decisions as files, see docs/logs.md. A change needs a restart."""

    path: FilePath = Field(description="Folder of the files; created if it does not exist.")
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="Format of finished files.")
    sample: Share = Field(1.0, description="Share of the decisions to log.")
    rotate_bytes: int = Field(64 * 1024**2, ge=4_096, le=2**40, description="Size at which a file ends.")
    keep: int = Field(8, ge=1, le=100_000, description="Finished files to keep, for each worker.")
    headers: HeaderNames = Field((), description="Request headers to log, such as those that rules read.")
    embedding: bool = Field(False, description="Log the embedding of the text, in half precision.")
    prompts: bool = Field(False, description="Log the judged text, and `user` and `metadata` of the body.")
    key: SecretStr | None = Field(
        None,
        min_length=16,
        max_length=64,
        description="Secret of the text's hash; default: one per process. Set it in the environment.",
    )


class Telemetry(Model):
    """Logs and traces. A change needs a restart."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level.")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="`auto`: console on a TTY.")
    log_decisions: bool = Field(True, description="Write one log line per decision.")
    log_prompts: bool = Field(False, description="Add the classified text to the log line of a decision.")
    otlp_endpoint: Url | None = Field(
        None, description="OTLP/gRPC collector for spans; default: OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    decision_log: DecisionLog | None = None


class Accounting(Model):
    """Tokens and dollars of the pools' answers. Needs the filter `accounting` in Envoy."""

    include_usage: bool = Field(False, description="Make streams of OpenAI's completions state their usage.")
    baseline: PoolName | None = Field(
        None, description="Pool that savings compare with; default: the most expensive candidate."
    )


def _switch(value: Any) -> Any:
    """`true` is every default, `false` is none."""
    return ({} if value else None) if isinstance(value, bool) else value


AccountingSetting = Annotated[
    Accounting | None, BeforeValidator(_switch, json_schema_input_type=Accounting | bool | None)
]
