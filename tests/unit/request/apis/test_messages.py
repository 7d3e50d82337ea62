"""`/v1/messages`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.request import apis
from semroute_extproc.request.view import Api, RequestView


def parse(*messages: Any, **fields: Any) -> RequestView:
    body = {"model": "auto", "max_tokens": 100, "messages": list(messages), **fields}
    return apis.parse(Api.MESSAGES, json.dumps(body).encode())


def turns(view: RequestView) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in view.turns]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


def result(content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": content}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 50_000}}
USE = {
    "role": "assistant",
    "content": [text("Looking."), {"type": "tool_use", "id": "t1", "input": {"a": 1}}],
}
ASK = {"role": "user", "content": "ls"}


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_the_system_prompt_comes_first(system: Any):
    assert turns(parse(ASK, system=system)) == [("system", "Be brief."), ("user", "ls")]


def test_text_blocks_are_joined_and_images_counted():
    view = parse(user(text("What is"), IMAGE, text("this?")))
    assert turns(view) == [("user", "What is\nthis?")]
    assert (view.images, view.characters) == (1, len("What is\nthis?"))


def test_a_tool_result_at_the_end_is_a_tool_loop():
    view = parse(ASK, USE, user(result("etc usr")))
    assert view.tool_loop
    assert turns(view) == [("user", "ls"), ("assistant", "Looking."), ("tool", "etc usr")]
    assert view.characters == len("lsLooking.etc usr") + len('{"a": 1}')
    assert not parse(ASK, USE, user(result("etc usr")), {"role": "assistant", "content": "Done."}).tool_loop


@pytest.mark.parametrize(
    ("is_error", "failed"), [(True, True), (False, False), (None, False), ("odd", False)]
)
def test_a_tool_result_may_be_marked_as_failed(is_error: Any, failed: bool):
    view = parse(ASK, USE, user({**result("etc"), "is_error": is_error}))
    assert [turn.failed for turn in view.turns] == [False, False, failed]


def test_text_sent_along_with_results_is_a_turn_of_its_own_after_them():
    view = parse(ASK, USE, user(text("Hurry."), result([text("etc"), IMAGE]), result(None)))
    assert turns(view)[2:] == [("tool", "etc"), ("tool", ""), ("user", "Hurry.")]
    assert (view.images, view.tool_loop) == (1, True)


def test_thinking_is_not_text():
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    redacted = {"type": "redacted_thinking", "data": "AAAA"}
    view = parse(ASK, {"role": "assistant", "content": [thought, redacted, text("Done.")]}, ASK)
    assert turns(view)[1] == ("assistant", "Done.")
    assert view.images == 0


@pytest.mark.parametrize(
    ("source", "expected", "files"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "Chapter one."}, "Chapter one.", 0),
        ({"type": "content", "content": [text("Chapter two.")]}, "Chapter two.", 0),
        ({"type": "base64", "media_type": "application/pdf", "data": "A" * 50_000}, "", 1),
        ({"type": "url", "url": "https://example.org/a.pdf"}, "", 1),
        ("odd", "", 1),
    ],
)
def test_documents_are_read_if_they_are_text(source: Any, expected: str, files: int):
    view = parse(user({"type": "document", "source": source}), ASK)
    assert (turns(view)[0], view.files) == (("user", expected), files)


def test_search_results_are_read():
    found = {"type": "search_result", "source": "https://example.org", "content": [text("Found.")]}
    assert turns(parse(user(found, text("Well?"))))[0] == ("user", "Found.\nWell?")
    assert turns(parse(ASK, USE, user(result([found]))))[-1] == ("tool", "Found.")


def test_blocks_nested_without_end_are_read_only_so_deep():
    """Each level would cost another scan of the rest."""
    block: Any = [text("deep")]
    for _ in range(100):
        block = [{"type": "search_result", "content": block}]
    assert turns(parse(ASK, user(*block))) == [("user", "ls"), ("user", "")]


@pytest.mark.parametrize(
    ("fields", "effort", "is_set"),
    [
        ({"thinking": {"type": "disabled"}}, "none", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "medium", True),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high", True),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, "none", True),
        ({"output_config": {"effort": "max"}}, "max", True),
        ({"output_config": {"effort": None}}, "", False),
        ({"output_config": {}, "thinking": None}, "", False),
        ({"reasoning_effort": "high"}, "", False),
    ],
)
def test_reasoning_switches_of_the_client_are_seen(fields: dict[str, Any], effort: str, is_set: bool):
    view = parse(ASK, **fields)
    assert (view.effort, view.reasoning_set) == (effort, is_set)


def test_json_mode_is_an_output_format():
    assert parse(ASK, output_config={"format": {"type": "json_schema", "schema": {}}}).json_mode
    assert not parse(ASK, output_config={"format": None}).json_mode


def test_the_output_limit_is_seen():
    assert parse(ASK).max_output_tokens == 100


def test_the_switches_a_policy_can_replace_are_named() -> None:
    view = parse(ASK, thinking={"type": "disabled"}, output_config={"effort": "low"})
    assert view.reasoning_paths == (("thinking",), ("output_config", "effort"))
