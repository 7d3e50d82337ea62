"""The raw cases of the table, at the socket of a sidecar that is served as in production."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway import start_sidecar
from report import expected
from semroute_demo.sidecar import Sidecar
from table import ENVOY, PROMPT, RAW, Mode, Raw, body, chat, headers

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

SECONDS_MAX = 20.0  # for one reply
SETTLE_SECONDS = 0.05  # for the end of a stream to arrive; gRPC's client forgets the status if it is writing


@dataclass
class Seen:
    """What came back."""

    words: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)  # replies after the last message
    end: str = ""
    outcome: str = ""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    running = start_sidecar(tmp_path_factory.mktemp("raw"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def seen(sidecar: Sidecar) -> dict[str, Seen]:
    """Every conversation, one after the other, with its outcome from the log."""
    found = asyncio.run(converse_all(sidecar))
    for line in decisions(sidecar):
        if line["request_id"] in found:
            case = found[line["request_id"]]
            case.outcome += f"{line['outcome']} {line['cause']}"
    return found


def decisions(sidecar: Sidecar) -> list[dict[str, Any]]:
    time.sleep(0.3)  # a line is written after its reply
    lines = sidecar.process.log_path.read_text().splitlines()
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in parsed if line.get("event") == "route.decided"]


async def converse_all(sidecar: Sidecar) -> dict[str, Seen]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{sidecar.socket}", options=options) as channel:
        return {name(case): await converse(channel, case) for case in RAW}


def name(case: Raw) -> str:
    return f"{case.area}/{case.name}".replace(" ", "-")


async def converse(channel: grpc.aio.Channel, case: Raw) -> Seen:
    call = channel.stream_stream(
        f"/{SERVICE}/Process", response_deserializer=pb.ProcessingResponse.FromString
    )()
    seen = Seen()
    try:
        async with asyncio.timeout(SECONDS_MAX):
            for sent, word in zip(case.sent, case.words, strict=True):
                is_headers = kind_of(sent) == "request_headers"
                # Messages that have the same field are merged: this adds a header.
                named = sent + headers({"x-request-id": name(case)}) if is_headers and word != "?" else sent
                if seen.words and await ended(call):
                    seen.words.append("-" if word == "-" else "same")
                    continue
                await call.write(named)
                if word == "?":
                    seen.words.append("?")
                    continue
                if word == "-":
                    seen.words.append("-")
                    continue
                seen.words.append(await word_of(call, case.sent[1:] if not is_headers else ()))
            with contextlib.suppress(asyncio.InvalidStateError):  # the sidecar ended the stream
                await call.done_writing()
            while (reply := await call.read()) is not grpc.aio.EOF:
                seen.extra.append(say(reply))
    except grpc.aio.AioRpcError:
        pass
    seen.end = (await call.code()).name
    return seen


async def ended(call: Any) -> bool:
    """Whether the sidecar has ended the stream well: it needs no more messages, and Envoy sends none."""
    code = asyncio.ensure_future(call.code())
    done, _ = await asyncio.wait({code}, timeout=SETTLE_SECONDS)
    code.cancel()
    return bool(done) and code.result() is grpc.StatusCode.OK


def kind_of(sent: bytes) -> str | None:
    try:
        return pb.ProcessingRequest.FromString(sent).WhichOneof("request")
    except Exception:
        return None


async def word_of(call: Any, sent: Sequence[bytes]) -> str:
    """The word for the reply to one message.

    `sent` are the messages after the headers; in full duplex the replies to all of them are one word.
    """
    reply = await call.read()
    if reply is grpc.aio.EOF:
        return "same"  # the stream has ended, and its status is compared as well
    word = say(reply)
    if sent and reply.WhichOneof("response") == "request_headers":
        new, last = b"", False
        while not last:
            reply = await call.read()
            streamed = reply.request_body.response.body_mutation.streamed_response
            new += streamed.body
            last = streamed.end_of_stream or reply.WhichOneof("response") == "request_trailers"
        given = b"".join(pb.ProcessingRequest.FromString(each).request_body.body for each in sent)
        return word if new == given else word + "*"
    return word


def say(reply: pb.ProcessingResponse) -> str:
    """A reply in the words of the table."""
    kind = reply.WhichOneof("response")
    assert kind is not None
    if kind == "immediate_response":
        return str(int(reply.immediate_response.status.code))
    if kind.endswith("trailers"):
        return "same"
    common = getattr(reply, kind).response
    if common.body_mutation.HasField("streamed_response"):
        return "echo"
    mutation = common.header_mutation
    sets = {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}
    if sets or mutation.remove_headers:
        assert common.clear_route_cache, "without it the mutation changes no route"
    mode = reply.mode_override.request_body_mode if reply.HasField("mode_override") else None
    if "x-semroute-cluster" not in sets:
        if not mutation.remove_headers:
            return "same"
        return "ask" if mode == Mode.BUFFERED else "read"
    pool = sets["x-semroute-cluster"].removeprefix("vllm-")
    assert not common.body_mutation.body or sets["content-length"] == str(len(common.body_mutation.body))
    return ("skip " if mode == Mode.NONE else "") + pool + ("*" if common.body_mutation.body else "")


@pytest.mark.parametrize("case", RAW, ids=name)
def test_a_conversation_goes_as_the_table_says(seen: dict[str, Seen], case: Raw) -> None:
    found = seen[name(case)]
    if case.outcome == "?":
        assert found.end in ("OK", "INVALID_ARGUMENT"), "the sidecar must not fail"
        return
    assert found.words == list(case.words)
    assert found.extra == []
    assert found.end == case.end
    assert found.outcome == case.outcome, "each request is counted once"


def test_the_sidecar_failed_on_no_message_and_repeated_no_prompt(
    sidecar: Sidecar, seen: dict[str, Seen]
) -> None:
    log = sidecar.process.log_path.read_text()
    assert "exchange.failed" not in log
    assert "decision.failed" not in log
    assert PROMPT not in log
    assert "semroute_inflight_streams 0.0" in sidecar.read_admin("/metrics")[1]


@pytest.mark.timeout(1_200)
async def test_a_stream_of_very_many_messages_is_decided(
    sidecar: Sidecar, request: pytest.FixtureRequest
) -> None:
    """Full duplex, in pieces of a few bytes; memory and time grow with the body, not with its square."""
    count, padding = request.config.getoption("--messages"), 8
    whole = chat(user="x" * (count * padding))
    step = len(whole) // count
    async with grpc.aio.insecure_channel(f"unix:{sidecar.socket}") as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Process", response_deserializer=pb.ProcessingResponse.FromString
        )()
        await call.write(headers({":method": "POST", ":path": "/v1/chat/completions",
                                  "content-type": "application/json"}, "FULL_DUPLEX_STREAMED"))  # fmt: skip
        for start in range(0, len(whole), step):
            await call.write(body(whole[start : start + step], end=start + step >= len(whole)))
        assert await word_of(call, [body(whole)]) == "small*"
        assert await call.read() is grpc.aio.EOF


def test_the_names_of_the_cases_are_unique() -> None:
    names = [name(case) for case in RAW]
    assert len(set(names)) == len(names)
    assert len(RAW) >= 200


def test_the_page_lists_every_case(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--conformance-page"):
        pytest.skip("this run writes the page")
    listed = Path(__file__).parents[2].joinpath("docs", "conformance.md").read_text()
    for case in (*RAW, *ENVOY):
        assert f"| {case.name} | {expected(case)} |" in listed, "run `make conformance`"
