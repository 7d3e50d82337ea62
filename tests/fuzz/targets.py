"""What is fuzzed: one function per target, which takes any bytes and raises if an invariant does not hold.

A target catches only the errors that its subject declares. The first byte of an input selects a variant, so
that one target covers every API, encoding or role. The same functions run on the committed corpus without
a fuzzer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import io
import json
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import brotli
import zstandard
from builders import FakeEncoder, build_policies, classifier, config, controller_state, names, plans
from google.protobuf.message import DecodeError

from semroute_extproc.config import source
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange, ExchangeSettings
from semroute_extproc.errors import (
    ArtifactError,
    BadBody,
    BodyTooLarge,
    ConfigError,
    EndpointError,
    UnsupportedEncoding,
)
from semroute_extproc.events import Decided, Event, Failed
from semroute_extproc.outcome import Kind, Outcome, facts
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.request import answers, apis, conversation, forms, handover
from semroute_extproc.request.body import decode_body, members_of, set_members
from semroute_extproc.request.envelope import unwrap
from semroute_extproc.request.language import language_of
from semroute_extproc.request.paths import place_of
from semroute_extproc.request.text import CLASSIFIED_CHARACTERS_MAX, SURFACE_NAMES, judged, surface_features
from semroute_extproc.request.tokens import estimate
from semroute_extproc.request.usage import TOKENS_MAX, parts_of, usage_of
from semroute_extproc.request.view import Api, Decide, RequestHead, RequestView, Turn
from semroute_extproc.serve.build import exchange_settings
from semroute_extproc.settings.process import Telemetry
from semroute_extproc.state.pool_metrics import read_page
from semroute_extproc.strategies.artifact import ArtifactFile
from semroute_extproc.strategies.calibration import read_calibration
from semroute_extproc.strategies.judge import probability
from semroute_extproc.strategies.profiles import read_profile
from semroute_extproc.telemetry.log import LogSink
from semroute_extproc.telemetry.prom import PrometheusSink

APIS = list(Api)
ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate", "zstd", "br", "gzip, br", "unknown")
DECODED_MAX = 1_000_000
PREFIXES = ("/openai", "/anthropic", "/api")
DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED
MODES = tuple(pb.ProcessingMode.BodySendMode.values())
ROLES = ("user", "assistant", "system", "tool")
HOSTILE = 'a" \r\n\t\x00{}é'
"""A model name that an edit must escape."""


def api_bodies(data: bytes) -> None:
    """A body gives sound facts or BadBody, and then it is JSON."""
    api, body = APIS[data[0] % len(APIS)], data[1:]
    try:
        view = apis.parse(api, body)
    except BadBody:
        return
    _check_view(api, view)
    with contextlib.suppress(RecursionError):
        assert isinstance(_loads(body), dict), "read although it is not a JSON object"
    with contextlib.suppress(BadBody):
        assert apis.model_of(body) == view.model


def _check_view(api: Api, view: RequestView) -> None:
    assert view.api is api
    assert {turn.role for turn in view.turns} <= set(ROLES)
    assert min(view.images, view.audio, view.video, view.files, view.tools, view.characters) >= 0
    assert min(view.thinking_tokens or 1, view.max_output_tokens or 1) > 0
    assert view.reasoning_set or not view.effort
    low, likely, high = estimate(view)
    assert 0 <= low <= high
    assert likely >= 0


def _loads(body: bytes) -> Any:
    """JSON as a Python server reads it, but numbers as they are spelled."""
    return json.loads(body.decode("utf-8", "replace"), parse_int=str, parse_float=str)


def edits(data: bytes) -> None:
    """An edited body has the new values and the client's others; a restored one has all of the client's."""
    edit = {("model",): HOSTILE, ("chat_template_kwargs", "enable_thinking"): False}
    try:
        edited = set_members(data, edit)
        members = members_of(data)
    except BadBody:
        return
    try:
        before, after = _loads(data), _loads(edited)
    except RecursionError:
        return
    inner = before.get("chat_template_kwargs")
    inner = {**(inner if isinstance(inner, dict) else {}), "enable_thinking": False}
    assert after == {**before, "model": HOSTILE, "chat_template_kwargs": inner}
    assert set_members(edited, edit) == edited
    plan = handover.plan(("small",), "c", members, [path[0] for path in edit], stored=True)
    if plan is None:
        return
    head = RequestHead("POST", "/", {handover.HANDOVER_HEADER: plan.header, handover.FAILURE_HEADER: "503"})
    failed = handover.read(head, ("small",))
    assert failed is not None
    restored = handover.restored(members_of(edited), failed)
    dropped = {name for name, *_ in edit if before.get(name) is None}  # null is restored as absent
    assert {name: _loads(bytes(raw)) for name, raw in restored.items()} == {
        name: value for name, value in before.items() if name not in dropped
    }


def texts(data: bytes) -> None:
    """Any conversation gives a bounded text, a language, finite features and tokens."""
    turns = tuple(
        Turn(ROLES[turn[0] % len(ROLES)], turn[1:].decode("utf-8", "replace"), failed=turn[0] >= 128)
        for turn in data.split(b"\x1e")
        if turn
    )
    found = judged(turns)
    assert len(found.text) <= CLASSIFIED_CHARACTERS_MAX
    assert all(each.characters > 0 for each in found.left_out)
    assert language_of(found.text).isalpha()
    features = surface_features(found.text)
    assert len(features) == len(SURFACE_NAMES)
    assert all(map(math.isfinite, features))
    for turn in turns:
        question, left_out, frame = unwrap(turn.text)
        assert len(question) <= len(turn.text)
        assert len(frame) <= len(turn.text)
        assert all(0 < each.characters <= len(turn.text) for each in left_out)
    for question in (conversation.approval, conversation.reask, conversation.failing_tests):
        assert isinstance(question(turns), bool)
    errors = conversation.tool_errors(turns)
    assert 0 <= conversation.repeated_errors(turns) <= len(errors) <= conversation.RESULTS_MAX
    view = RequestView(Api.CHAT_COMPLETIONS, "m", turns, characters=sum(len(turn.text) for turn in turns))
    _check_view(Api.CHAT_COMPLETIONS, view)


def upstream_answers(data: bytes) -> None:
    """A judge's answer gives a probability or EndpointError, a metrics page numbers or ValueError.

    From 128 on, the first byte means an answer to a client, whose usage is possible or missing.
    """
    if data[0] >= 128:
        stream = data[0] % 2 == 1
        found = usage_of(parts_of(data[1:], stream), APIS[data[0] % len(APIS)], ended=data[0] < 192)
        assert found is None or 0 <= found.cached <= found.input <= 3 * TOKENS_MAX
        assert found is None or 0 <= found.reasoning <= found.output
        assert found is None or found.estimated <= stream
        return
    scheme, answer = ("score", "choice", "page")[data[0] % 3], data[1:]
    if scheme == "page":
        with contextlib.suppress(ValueError, OverflowError):
            load = read_page(answer)
            assert all(isinstance(value, float | int) for value in load.values())
        return
    with contextlib.suppress(EndpointError):
        assert 0.0 <= probability(answer, scheme) <= 1.0


def encodings(data: bytes) -> None:
    """Any bytes decode within the limit or raise, and what a library encoded comes back."""
    coding, body = ENCODINGS[data[0] % len(ENCODINGS)], data[1:]
    try:
        assert len(decode_body(body, coding, DECODED_MAX)) <= DECODED_MAX
    except UnsupportedEncoding:
        assert coding in ("gzip, br", "unknown")
    except (BadBody, BodyTooLarge):
        pass
    for name, encode in ENCODERS.items():
        decoded = decode_body(encode(body), name, DECODED_MAX)
        assert decoded in (body, body.removeprefix(b"\xef\xbb\xbf")), name
        assert _json(decoded) == _json(body), name


def _json(body: bytes) -> str:
    """How Python's own parser reads the body, which knows the byte order marks."""
    try:
        return repr(json.loads(body))
    except (ValueError, RecursionError):
        return ""


ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": functools.partial(gzip.compress, compresslevel=1),
    "deflate": functools.partial(zlib.compress, level=1),
    "zstd": zstandard.compress,
    "br": functools.partial(brotli.compress, quality=1),
}


def paths(data: bytes) -> None:
    """Any path has a place, whose new path is printable and means the same."""
    sent = data.decode("utf-8", "replace")
    place = place_of(sent, PREFIXES)
    rewritten = place.rewritten
    assert rewritten == "" or (rewritten.isascii() and rewritten.isprintable() and rewritten[0] == "/")
    if rewritten:
        again = place_of(rewritten, PREFIXES)
        assert (again.path, again.api) == (place.path, place.api)
    found = NAMES.find(place.model)
    assert found is None or found.model in SETTINGS.models or found.pool in SETTINGS.pools
    for anthropic in (False, True):
        answer = answers.models(place.path, NAMES, anthropic)
        assert answer is None or json.loads(answer.body)


def form_bodies(data: bytes) -> None:
    """Of a form the model is replaced and nothing else, whatever its content type."""
    line, _, form = data.partition(b"\n")
    content_type = line.decode("utf-8", "replace")
    model = forms.model_of(form, content_type)
    edited = forms.set_model(form, content_type, "other")
    assert forms.model_of(edited, content_type) == ("other" if edited != form else model)
    if model.isascii():
        assert len(edited) in (len(form), len(form) - len(model) + len("other"))


def exchanges(data: bytes) -> None:
    """Any messages get only replies that Envoy allows, and any failure in between is passed through.

    An input is the settings, then each message with its length in two bytes.
    """
    outcome, exchange = OUTCOMES[data[0] % len(OUTCOMES)], Exchange(_limited(data[0] // 16 % 2 == 0))
    rescued, closed, duplex, outcomes, kinds, data = data[0] >= 128, False, None, 0, [], data[1:]
    while data:
        size = int.from_bytes(data[:2])
        raw, data = data[2 : 2 + size], data[2 + size :]
        try:
            message = pb.ProcessingRequest.FromString(raw)
        except DecodeError:  # gRPC ends the stream
            break
        kind = message.WhichOneof("request")
        if duplex is None:
            modes = message.protocol_config
            duplex = DUPLEX in (modes.request_body_mode, modes.response_body_mode)
        step = exchange.receive(message)
        outcomes += step.outcome is not None
        written = step.replies
        if step.decide is not None and rescued:
            step = exchange.rescue(kind)
            outcomes += step.outcome is not None
            written = step.replies
        elif step.decide is not None:
            written = exchange.decided(outcome)
            outcomes += 1
        kinds.append(kind)
        assert not (written and (exchange.observed or closed)), "a reply that Envoy does not allow"
        replies = [pb.ProcessingResponse.FromString(each) for each in written]
        names_ = [reply.WhichOneof("response") for reply in replies]
        assert None not in names_
        closed = closed or "immediate_response" in names_
        if not duplex:
            assert names_ in ([], [kind], ["immediate_response"])
        for reply in replies:
            _check_reply(reply)
    outcomes += exchange.ended() is not None
    if kinds.count("request_headers") == 1 and kinds[0] == "request_headers":
        assert outcomes <= 1, "more than one outcome of a request"


def _check_reply(reply: pb.ProcessingResponse) -> None:
    commons = (reply.request_headers.response, reply.request_body.response)
    mutations = [*(common.header_mutation for common in commons), reply.immediate_response.headers]
    for option in (option for mutation in mutations for option in mutation.set_headers):
        value = option.header.raw_value.decode("ascii")
        assert value.isprintable(), "a header that is not one printable line"
    space = reply.dynamic_metadata.fields["semroute"].struct_value.fields
    assert space["reason"].string_value.isascii()


def decisions(data: bytes) -> None:
    """Any request is decided, logged and counted without an internal error.

    An input is Envoy's body mode in the first byte, then the path, the headers, an empty line and the body.
    """
    FAILURES.clear()
    head, _, body = data[1:].partition(b"\n\n")
    path, *fields = head.split(b"\n")
    opening = pb.ProcessingRequest()
    opening.protocol_config.request_body_mode = MODES[data[0] % len(MODES)]
    sent = [(b":method", b"POST"), (b":path", path), (b"content-type", b"application/json")]
    for key, value in sent + [(key, value) for key, _, value in (each.partition(b": ") for each in fields)]:
        name = key.decode("ascii", "ignore").lower()
        opening.request_headers.headers.headers.add(key=name, raw_value=value)
    whole = pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    exchange = Exchange(exchange_settings(_pipeline()))
    outcome = exchange.receive(opening).outcome
    step = exchange.receive(whole) if outcome is None else None
    if step is not None:
        outcome = step.outcome
        if step.decide is not None:
            outcome = _loop().run_until_complete(_decided(step.decide))
            for reply in exchange.decided(outcome):
                _check_reply(pb.ProcessingResponse.FromString(reply))
    assert FAILURES == [], "an internal error"
    assert outcome is not None, "a request without an outcome"
    assert outcome.answer is not None or outcome.cluster in CLUSTERS, "a cluster of the client's"
    assert all(isinstance(value, str | float | int) for value in facts(outcome).values())
    now = time.time_ns()
    event = Decided(outcome, exchange.head.request_id, exchange.head.path, (), now, now, now, observed=False)
    with contextlib.redirect_stderr(io.StringIO()):
        for sink in (METRICS.handle, LOG.handle):
            sink(event)


def configurations(data: bytes) -> None:
    """Any file and environment give a configuration whose policies compile, or lines that say what is wrong.

    After a zero byte an input has lines that set environment variables.
    """
    text, _, lines = data.partition(b"\x00")
    pairs = (line.decode("utf-8", "replace").partition("=") for line in lines.split(b"\n") if line)
    path = _file("semroute.yaml", text)
    try:
        loaded = source.load(path, {f"SEMROUTE__{name}": value for name, _, value in pairs})
    except ConfigError as error:
        problems = error.problems
    else:
        _, found = build_policies(loaded.config)
        problems = [loaded.source.locate(problem) for problem in found] or ["none"]
    assert problems
    assert all(problems), "a problem without words"


def data_files(data: bytes) -> None:
    """An artifact, a calibration or a profile is read, or ArtifactError names the file."""
    readers: tuple[Callable[[Path], Any], ...] = (ArtifactFile, read_calibration, read_profile)
    path = _file("data", data[1:])
    problem = f"{path}: "
    try:
        found = readers[data[0] % len(readers)](path)
        if isinstance(found, ArtifactFile):
            for name in ("quantiles", "x", "seed"):
                with contextlib.suppress(ArtifactError):
                    found.floats(name, None)
                with contextlib.suppress(ArtifactError):
                    found.integer(name, 0)
            found.names("models", 2)
    except ArtifactError as error:
        problem = str(error)
    assert problem.startswith(f"{path}: ")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="semroute-fuzz-")


def _file(name: str, content: bytes) -> Path:
    path = Path(_folder().name, name)
    path.write_bytes(content)
    return path


SETTINGS = config(
    pools={
        "small": {"cluster": "s", "model": "m-s", "context": 4_000, "reasoning": "qwen3", "clamp": True},
        "large": {
            "cluster": "l",
            "model": "m-l",
            "context": 100_000,
            "reasoning": "deepseek-v3",
            "audio": True,
        },
        "eyes": {"cluster": "e", "model": "m-e", "context": 8_000, "images": True, "policy": "guarded"},
        "again": {"cluster": "a", "model": "m-l", "context": 50_000, "aliases": ["old-*"]},
    },
    models={"auto": {"policy": "main", "aliases": ["gpt-*"], "canary": {"guarded": 0.3}}},
    policies={
        "main": {
            "rules": [
                {"name": "tier", "when": 'request.headers["x-tier"] == "internal"', "pool": "small"},
                {
                    "name": "words",
                    "when": 'request.text.contains("secret") || request.user == "x"',
                    "deny": "no",
                },
                {"name": "work", "when": "request.reask || request.tool_errors >= 3", "pool": "large"},
                {
                    "name": "hard",
                    "when": 'domain == "math" && difficulty > 0.4',
                    "pool": "large",
                    "reasoning": "high",
                },
            ],
            "otherwise": {"strategy": "s"},
            "shadow": ["guarded"],
        },
        "guarded": {
            "rules": [{"name": "long", "when": "tokens > 100", "pool": "large"}],
            "otherwise": {"pool": "eyes"},
        },
    },
    controllers={"session": {}, "failover": {}, "budgets": {"s": {"strong_share": 0.4}}},
    text={"envelopes": {"context": ["memory"], "housekeeping": {"title": ["name this chat"]}}},
    server={"path_prefixes": list(PREFIXES), "body_bytes_max": DECODED_MAX, "deadline_ms": 10_000},
)
NAMES = names(SETTINGS)
CLUSTERS = {pool.cluster + end for pool in SETTINGS.pools.values() for end in ("", "-or-next")}
LIMITED = {"body_bytes_max": 5_000, "path_prefixes": list(PREFIXES)}
OUTCOMES = (
    Outcome(Kind.ROUTED, "strategy", "small", "s", body=b'{"model":"small"}', affinity="0123"),
    Outcome(Kind.FALLBACK, "deadline", "large", "l", reason="fallback: deadline"),
    Outcome(Kind.REJECTED, "denied", answer=answers.error(403, "a", "b", "c", Api.MESSAGES)),
    Outcome(
        Kind.ROUTED,
        "rule",
        "small",
        "s",
        body=b"{}",
        decoded=True,
        handover=handover.Handover(("small",), {}),
    ),
)
METRICS, LOG = PrometheusSink(), LogSink(Telemetry(log_format="json", log_prompts=True))
FAILURES: list[str] = []


def _emit(event: Event) -> None:
    if isinstance(event, Failed):
        FAILURES.append(event.where)
        raise AssertionError(event.where)


@functools.cache
def _pipeline() -> Pipeline:
    state = controller_state(SETTINGS)
    return Pipeline(SETTINGS, plans(SETTINGS), classifier(FakeEncoder()), _emit, controllers=state)


@functools.cache
def _limited(override: bool) -> ExchangeSettings:
    """The settings of an exchange that is soon too large, and that may ask for the body or not."""
    settings = config(server={**LIMITED, "allow_mode_override": override})
    return exchange_settings(Pipeline(settings, plans(settings), classifier(FakeEncoder())))


async def _decided(request: Decide) -> Outcome:
    outcome = await _pipeline().decide(request)
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # the shadows
    return outcome


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "api-bodies": api_bodies,
    "edits": edits,
    "texts": texts,
    "upstream-answers": upstream_answers,
    "encodings": encodings,
    "paths": paths,
    "form-bodies": form_bodies,
    "exchanges": exchanges,
    "decisions": decisions,
    "configurations": configurations,
    "data-files": data_files,
}
"""Name of a target, and of its folder in `corpus`, to its function."""
