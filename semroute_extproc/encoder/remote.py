"""A bundle's graph on a server of the Open Inference Protocol v2 over gRPC, such as Triton or MLServer.

The server gets the graph's inputs and returns its outputs; it batches. Every answer is checked: its version,
and the type, shape and values of each output. Without a usable answer in time, the graph on this machine is
run if there is one (docs/adr/0018).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import inf, prod
from time import monotonic
from typing import Any, NoReturn

import grpc
import numpy as np
import structlog
from google.protobuf.message import DecodeError

from semroute_extproc.encoder._pb.inference_pb2 import ModelInferRequest, ModelInferResponse
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import inputs, raw_outputs, widths
from semroute_extproc.encoder.preprocess import Framed, Framer
from semroute_extproc.encoder.queue import EncodeQueue
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError, EncoderUnavailable
from semroute_extproc.events import Emit, RemoteEncoded, ignore
from semroute_extproc.io.breaker import Breaker
from semroute_extproc.io.files import read_file
from semroute_extproc.outcome import Cause
from semroute_extproc.settings.process import RemoteEncoding

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES = {"int64": "INT64", "float32": "FP32"}  # of NumPy, and of the protocol

CHANNEL = (
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.enable_http_proxy", 0),  # a proxy from the environment would see the prompts
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses of the name
    # gRPC waits up to two minutes before it connects again to a server that was restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Without pings, TCP notices only after a quarter of an hour that a host has vanished.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
)
CAUSES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Cause.REMOTE_TIMEOUT,
    grpc.StatusCode.UNAVAILABLE: Cause.REMOTE_UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND: Cause.REMOTE_REVISION,
}

OUTPUTS_MAX, DIMENSIONS_MAX, VALUE_MAX = 16, 4, 1e6  # of an answer; products of larger values are infinite
INLINE_CHARACTERS_MAX = 1_024  # of a text that the event loop tokenizes; a longer one goes to a thread
TIME_MIN = 0.5  # a timeout counts as the server's failure if it had this share of `deadline_ms`
VERIFY_SECONDS = 5.0  # for the pass at startup, which may be the server's first pass
CA_BYTES_MAX, TOKEN_BYTES_MAX, DETAIL_CHARACTERS_MAX, TOKEN_SECONDS = 16 * 1024**2, 16 * 1024, 200, 60.0

log = structlog.get_logger("semroute.encoder")


class EncoderServer:
    """One server and its circuit breaker; belongs to the event loop it is created on."""

    def __init__(
        self, url: str, bundle: Bundle, settings: RemoteEncoding, clock: Callable[[], float] = monotonic
    ) -> None:
        """`clock` returns seconds for the breaker and the token's age. Raises ConfigError."""
        self.url, self._bundle, self._clock = url, bundle, clock
        self._patience, self._token_file = settings.deadline_ms / 1e3, settings.token_file
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._widths = {**widths(bundle.manifest), "difficulty_logit": 1}
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._read_at = -inf
        scheme, _, target = url.partition("://")
        try:
            self._authorize(clock())
            trusted = read_file(settings.ca_file, CA_BYTES_MAX) if settings.ca_file else None
        except OSError as error:
            raise ConfigError([f"encoder.remote: {error.filename}: {error.strerror}"]) from None
        if scheme == "https":
            secure = grpc.ssl_channel_credentials(trusted)
            self._channel = grpc.aio.secure_channel(target, secure, options=CHANNEL)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=CHANNEL)
        self._call: Callable[..., Awaitable[bytes]] = self._channel.unary_unary(METHOD)

    async def infer(self, request: bytes, batch: list[Framed], seconds: float) -> RawOutput:
        """The output for a batch of one text within `seconds`; raises EncoderUnavailable (REMOTE_*)."""
        if not self._breaker.allows(self._clock()):
            raise EncoderUnavailable(Cause.REMOTE_PAUSED)
        probe, learned, problem = self._breaker.is_open, False, None
        try:
            self._authorize(self._clock())
            output = self._read(await self._call(request, timeout=seconds, metadata=self._metadata), batch)
            learned = True
            self._breaker.succeeded()
            return output
        except (grpc.aio.AioRpcError, OSError) as error:
            cause, detail = Cause.REMOTE_ERROR, str(error)
            if isinstance(error, grpc.aio.AioRpcError):
                cause, detail = CAUSES.get(error.code(), cause), error.details() or error.code().name
            problem = EncoderUnavailable(cause, detail)
            learned = problem.cause is not Cause.REMOTE_TIMEOUT or seconds >= TIME_MIN * self._patience
        except EncoderUnavailable as error:
            problem, learned = error, True
        finally:
            if learned and problem is not None:
                self.failed()
            elif not learned and probe:
                self._breaker.gave_up()
            if self._breaker.is_open != probe:
                why = {"cause": problem.cause, "detail": _shown(problem.detail)} if problem else {}
                log.warning("remote_encoder.breaker", url=self.url, open=self._breaker.is_open, **why)
        raise problem

    def failed(self) -> None:
        """Count a failure, such as an answer that was slower than that of the second server."""
        self._breaker.failed(self._clock())

    async def close(self) -> None:
        """Close the connections."""
        await self._channel.close()

    def _authorize(self, now: float) -> None:
        if self._token_file is not None and now - self._read_at >= TOKEN_SECONDS:
            token = read_file(self._token_file, TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
            if not (token.isascii() and token.isprintable()):
                raise OSError(None, "is not a token", str(self._token_file))
            self._metadata, self._read_at = (("authorization", f"Bearer {token}"),), now

    def _read(self, answer: bytes, batch: list[Framed]) -> RawOutput:
        try:
            response = ModelInferResponse.FromString(answer)
        except DecodeError:
            _refuse("the answer is not a ModelInferResponse")
        if response.model_version != self._bundle.model_version:
            raise EncoderUnavailable(Cause.REMOTE_REVISION, f"it is version {response.model_version!r}")
        if not len(response.outputs) == len(response.raw_output_contents) <= OUTPUTS_MAX:
            _refuse(f"{len(response.outputs)} outputs have {len(response.raw_output_contents)} contents")
        found: dict[str, Any] = {}
        for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True):
            width = self._widths.get(tensor.name)
            if width is None:
                continue
            shape = list(tensor.shape[:DIMENSIONS_MAX])
            if (tensor.datatype, shape[:1], prod(shape), len(content)) != ("FP32", [1], width, 4 * width):
                size = f"in {len(content)} bytes, instead of {width} of FP32"
                _refuse(f"{tensor.name} is {tensor.datatype} {shape} {size}")
            values = np.frombuffer(content, "<f4")
            if not (np.abs(values) <= VALUE_MAX).all():
                _refuse(f"{tensor.name} is not finite, or too large")
            found[tensor.name] = values[None, :]
        if missing := self._widths.keys() - found.keys() - {"neighbour_embedding"}:
            _refuse(f"there is no output {min(missing)}")
        found["difficulty_logit"] = found["difficulty_logit"][:, 0]
        return raw_outputs(batch, found)[0]


class RemoteEncoder:
    """Encodes texts on a server; belongs to the event loop it is created on."""

    def __init__(
        self,
        bundle: Bundle,
        settings: RemoteEncoding,
        local: EncodeQueue | None,
        texts_max: int,
        emit: Emit = ignore,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`local` encodes without an answer; `texts_max` texts may be sent at once. Raises ConfigError."""
        self.bundle, self._local, self._texts_max, self._emit = bundle, local, texts_max, emit
        self._model = settings.model.replace("{bundle}", bundle.manifest.name)
        self._patience, self._hedge = settings.deadline_ms / 1e3, settings.hedge_ms / 1e3
        self._framer = Framer(bundle.path / "tokenizer.json", bundle.manifest.encoder)
        urls = [settings.url, *filter(None, [settings.hedge_url])]
        self._servers = [EncoderServer(url, bundle, settings, clock) for url in urls]
        self._loop = asyncio.get_running_loop()
        self._under_way = 0

    @property
    def waiting(self) -> int:
        """Texts that wait for the server or for this machine."""
        return self._under_way + (self._local.waiting if self._local else 0)

    def describe(self) -> dict[str, str]:
        """As `EncodeQueue.describe`; the graph is the model's name at the server."""
        names = {"bundle": self.bundle.manifest.name, "revision": self.bundle.revision}
        return {**names, "provider": "remote", "graph": self._model}

    async def verify(self) -> None:
        """Run a pass on each server; raises ConfigError for another graph. A server may be down."""
        batch = [self._framer.frame("word")]
        for server in self._servers:
            try:
                await server.infer(self._request(batch[0]), batch, VERIFY_SECONDS)
            except EncoderUnavailable as error:
                if error.cause in (Cause.REMOTE_UNAVAILABLE, Cause.REMOTE_TIMEOUT, Cause.REMOTE_PAUSED):
                    why = {"cause": error.cause, "detail": _shown(error.detail)}
                    log.warning("remote_encoder.unverified", url=server.url, **why)
                    continue
                wanted = f"version {self.bundle.model_version} (revision {self.bundle.revision})"
                problem = f"encoder.remote: {server.url} does not serve {self._model} in {wanted}"
                raise ConfigError([f"{problem}: {_shown(error.detail)}"]) from None

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """Encode `text` before `deadline` (the loop's clock, seconds); raises EncoderUnavailable."""
        try:
            if self._under_way >= self._texts_max:
                raise EncoderUnavailable(Cause.REMOTE_BUSY)
            self._under_way += 1
            try:
                output, server = await self._asked(text, min(self._loop.time() + self._patience, deadline))
            finally:
                self._under_way -= 1
        except EncoderUnavailable as error:
            self._emit(RemoteEncoded(self.bundle.manifest.name, error.cause))
            if self._local is None:
                raise
            return replace(await self._local.encode(text, deadline), remote=error.cause.words)
        self._emit(RemoteEncoded(self.bundle.manifest.name, "ok" if server is self._servers[0] else "hedged"))
        return output

    async def close(self) -> None:
        """Close the connections, and stop the local encoder."""
        await asyncio.gather(*(server.close() for server in self._servers))
        if self._local is not None:
            await self._local.close()

    async def _asked(self, text: str, until: float) -> tuple[RawOutput, EncoderServer]:
        """The first usable answer, and the server that gave it.

        The second server is asked after `hedge_ms`, or as soon as the first has failed.
        """
        framed = await self._framed(text)
        request, unasked, failure = self._request(framed), [*self._servers], None
        if len(unasked) == 1:  # without the cost of tasks
            return await unasked[0].infer(request, [framed], until - self._loop.time()), unasked[0]
        running: dict[asyncio.Task[RawOutput], EncoderServer] = {}
        try:
            while unasked or running:
                if unasked:
                    server, seconds = unasked.pop(0), until - self._loop.time()
                    running[asyncio.create_task(server.infer(request, [framed], seconds))] = server
                hedge = self._hedge if unasked else None
                done, _ = await asyncio.wait(running, timeout=hedge, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    server, error = running.pop(task), task.exception()
                    if error is None:
                        for slower in running.values():
                            if slower is self._servers[0]:
                                slower.failed()
                        return task.result(), server
                    if failure is None or getattr(error, "cause", None) is not Cause.REMOTE_PAUSED:
                        failure = error
            assert failure is not None
            raise failure
        finally:
            for task in running:
                task.cancel()

    async def _framed(self, text: str) -> Framed:
        try:
            if len(text) <= INLINE_CHARACTERS_MAX:
                return self._framer.frame(text)
            return await asyncio.to_thread(self._framer.frame, text)
        except BaseException as error:  # a panic in the tokenizer's Rust is not an Exception
            if isinstance(error, asyncio.CancelledError):
                raise
            raise EncoderUnavailable(Cause.ERROR) from error

    def _request(self, framed: Framed) -> bytes:
        request = ModelInferRequest(model_name=self._model, model_version=self.bundle.model_version)
        for name, values in inputs([framed], len(framed.ids), 0).items():
            request.inputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
            request.raw_input_contents.append(values.tobytes())
        return request.SerializeToString()


def _refuse(problem: str) -> NoReturn:
    raise EncoderUnavailable(Cause.REMOTE_INVALID, problem)


def _shown(detail: str) -> str:
    return " ".join(detail.split())[:DETAIL_CHARACTERS_MAX]
