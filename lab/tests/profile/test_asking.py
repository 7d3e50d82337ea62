"""Asking an endpoint: retries, bounds, and going on after an interruption."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai_server import Act, OpenAIServer, completion
from semroute_lab.profile.asking import Answers, FatalError, Model, Reply, ask_all, key_of

from semroute_extproc.errors import DataError, EndpointError
from semroute_extproc.io.http import Endpoint


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(lambda body: completion("re: " + body["messages"][-1]["content"])) as running:
        yield running


@pytest_asyncio.fixture
async def endpoint(server: OpenAIServer) -> AsyncIterator[Endpoint]:
    async with Endpoint(server.url) as running:
        yield running


class Pauses:
    """Sleeps that were asked for, and not slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def ask(endpoint: Endpoint, pauses: Pauses | None = None, **changes: Any) -> Reply:
    model = Model(endpoint, "m", {"temperature": 0}, **{"seconds": 10.0, **changes})
    return await model.ask("hello", random.Random(1), pauses or Pauses())


async def test_a_question_is_one_user_turn_with_the_parameters_given(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    reply = await ask(endpoint)
    assert (reply.text, reply.finish, reply.input_tokens, reply.output_tokens) == ("re: hello", "stop", 7, 5)
    assert server.requests == [
        {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": False, "temperature": 0}
    ]


@pytest.mark.parametrize(
    "act",
    [
        Act(status=429),
        Act(status=500),
        Act(status=503),
        Act(delay=5.0),
        Act(body=b'{"choices": [{"mess'),
        Act(body=b'{"choices": []}'),
        Act(body=b""),
        Act(body=b'{"choices"', hang_up=True),
    ],
)
async def test_what_may_pass_is_tried_again(server: OpenAIServer, endpoint: Endpoint, act: Act) -> None:
    server.script.extend([act, act])
    pauses = Pauses()
    seconds = 1.0 if act.delay else 10.0
    assert (await ask(endpoint, pauses, seconds=seconds)).text == "re: hello"
    assert len(server.requests) == 3
    assert 0.0 <= pauses.seconds[0] <= 0.5
    assert 0.0 <= pauses.seconds[1] <= 1.0


async def test_retry_after_is_obeyed(server: OpenAIServer, endpoint: Endpoint) -> None:
    date = "Sat, 21 Nov 2026 03:00:00 GMT"
    later = "Sat, 21 Nov 2026 03:00:20 GMT"
    server.script.append(Act(status=429, headers={"retry-after": "7"}))
    server.script.append(Act(status=503, headers={"retry-after": later, "date": date}))
    server.script.append(Act(status=503, headers={"retry-after": "²"}))
    pauses = Pauses()
    await ask(endpoint, pauses)
    assert 7.0 <= pauses.seconds[0] <= 7.5
    assert 20.0 <= pauses.seconds[1] <= 21.0
    assert pauses.seconds[2] <= 2.0


async def test_nobody_waits_for_hours(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.script.append(Act(status=429, headers={"retry-after": "7200"}))
    with pytest.raises(EndpointError, match="429"):
        await ask(endpoint)
    assert len(server.requests) == 1


async def test_tries_come_to_an_end(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.script.extend([Act(status=500)] * 5)
    with pytest.raises(EndpointError, match="500"):
        await ask(endpoint, tries=3)
    assert len(server.requests) == 3


async def test_a_question_that_is_refused_is_not_repeated(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.script.append(Act(status=400))
    with pytest.raises(EndpointError, match="400"):
        await ask(endpoint)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_every_question_would_get_ends_it_all(
    server: OpenAIServer, endpoint: Endpoint, status: int
) -> None:
    server.script.append(Act(status=status))
    with pytest.raises(FatalError, match=str(status)):
        await ask(endpoint)
    assert len(server.requests) == 1


async def test_an_answer_without_text_is_an_empty_answer(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.answer = lambda _: {**completion(""), "usage": None}
    reply = await ask(endpoint)
    assert (reply.text, reply.output_tokens) == ("", None)


# Many questions.


async def run(
    endpoint: Endpoint, file: Path, prompts: list[str | None], concurrency: int = 4, **changes: Any
) -> Any:
    model = Model(endpoint, "m", {}, **{"seconds": 5.0, "tries": 1, **changes})
    done: list[None] = []
    with Answers(file) as answers:
        asked = await ask_all(model, prompts, answers, concurrency, lambda: done.append(None))
    assert len(done) == len(prompts)
    return asked


async def test_never_more_are_asked_at_once_than_allowed(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    server.delay = 0.02
    asked = await run(endpoint, tmp_path / "a.jsonl", [f"q{n}" for n in range(30)], concurrency=3)
    assert server.most_at_once == 3
    assert [reply.text for reply in asked.replies] == [f"re: q{n}" for n in range(30)]
    assert asked.fresh == 30


async def test_what_was_answered_is_not_asked_again(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    server.script.extend([Act(), Act(status=400), Act()])
    first = await run(endpoint, file, ["q0", "q1", "q2"], concurrency=1)
    assert list(first.failures) == [1]
    assert first.replies[1] is None
    second = await run(endpoint, file, ["q0", "q1", "q2", "q3"], concurrency=1)
    assert [r["messages"][0]["content"] for r in server.requests] == ["q0", "q1", "q2", "q1", "q3"]
    assert (second.fresh, second.failures) == (2, {})
    assert [reply.text for reply in second.replies] == ["re: q0", "re: q1", "re: q2", "re: q3"]


async def test_a_run_that_is_cancelled_keeps_what_it_has(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    server.script.extend([Act(), Act(), Act(delay=30.0)])
    task = asyncio.create_task(run(endpoint, file, ["q0", "q1", "q2"], concurrency=1, seconds=60.0))
    async with asyncio.timeout(10):
        while len(server.requests) < 3:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = await run(endpoint, file, ["q0", "q1", "q2"])
    assert again.fresh == 1
    assert len(server.requests) == 4


async def test_other_parameters_are_other_questions(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    with Answers(tmp_path / "a.jsonl") as answers:
        for temperature in (0, 1, 0):
            await ask_all(Model(endpoint, "m", {"temperature": temperature}), ["q"], answers, 1)
    assert len(server.requests) == 2


async def test_an_endpoint_that_is_gone_is_given_up_soon(tmp_path: Path) -> None:
    async with Endpoint("http://127.0.0.1:1/v1") as nobody:
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1"):
            await run(nobody, tmp_path / "a.jsonl", [f"q{n}" for n in range(1_000)])


async def test_single_questions_that_fail_do_not_end_a_run(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    server.script.extend([Act(), *[Act(status=400)] * 15])
    asked = await run(endpoint, tmp_path / "a.jsonl", [f"q{n}" for n in range(20)], concurrency=1)
    assert (len(asked.failures), asked.fresh) == (15, 5)


async def test_a_limit_of_the_rate_that_lasts_ends_a_run(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    server.script.extend([Act(), *[Act(status=429)] * 100])
    with pytest.raises(EndpointError, match="429"):
        await run(endpoint, tmp_path / "a.jsonl", [f"q{n}" for n in range(20)], concurrency=1, tries=1)


async def test_parameters_that_every_question_is_refused_for_end_it(
    server: OpenAIServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    server.script.extend([Act(status=400)] * 100)
    with pytest.raises(EndpointError, match="400"):
        await run(endpoint, tmp_path / "a.jsonl", [f"q{n}" for n in range(100)], concurrency=1)
    assert len(server.requests) == 10


# The file of answers.


def reply(text: str) -> Reply:
    return Reply(text, "stop", 1, 2, 0.5)


def test_answers_are_read_back_as_they_were(tmp_path: Path) -> None:
    said = reply('line one\nline "two" \u2028 é')
    with Answers(tmp_path / "a.jsonl") as answers:
        answers.add("k", said)
    with Answers(tmp_path / "a.jsonl") as answers:
        found = answers.get("k")
    assert found == said


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with Answers(file) as answers:
        answers.add("k1", reply("one"))
        answers.add("k2", reply("two"))
    file.write_bytes(file.read_bytes()[:-20])
    with Answers(file) as answers:
        assert answers.get("k1") == reply("one")
        assert answers.get("k2") is None
        answers.add("k2", reply("two"))
    with Answers(file) as answers:
        assert answers.get("k2") == reply("two")


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        Answers(tmp_path / "a.jsonl"),
        pytest.raises(DataError, match="another run is writing it"),
        Answers(tmp_path / "a.jsonl"),
    ):
        pass


def test_a_file_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"), Answers(tmp_path / "nowhere" / "a.jsonl"):
        pass


def test_a_key_changes_with_model_prompt_and_parameters() -> None:
    keys = {key_of("m", "p", {}), key_of("n", "p", {}), key_of("m", "q", {}), key_of("m", "p", {"a": 1})}
    assert len(keys) == 4
    assert key_of("m", "p", {"a": 1, "b": 2}) == key_of("m", "p", {"b": 2, "a": 1})
    key_of("m", "\ud800", {})
