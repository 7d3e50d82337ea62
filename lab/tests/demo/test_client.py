"""The demo's requests, and the table of the rows that they become."""

from __future__ import annotations

import io
import json

from rich.console import Console
from semroute_demo import client

ROW: client.Json = {
    "group": "plain",
    "sender": "user",
    "prompt": "hi",
    "expected": "small",
    "pool": "small",
    "reason": "difficulty 0.00 is below 0.36",
    "domain": "other",
    "unknown": "false",
    "housekeeping": "",
    "left_out": None,
    "decision_ms": 4.0,
    "error": "",
}


def printed(*rows: client.Json) -> list[str]:
    """The table's lines, with single spaces."""
    console = Console(width=150, file=io.StringIO())
    console.print(client.table(rows, 150))
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_every_request_carries_its_ask_as_it_is() -> None:
    requests = client.prompts()
    assert "{{ask}}" not in json.dumps(requests)
    (review,) = (each for each in requests if each["labels"]["prompt"].startswith("Review this function"))
    ((message),) = review["body"]["messages"]
    assert "\n        self._lock = threading.Lock()\n" in message["content"]  # code keeps its line breaks
    assert review["body"]["model"] == "auto"
    assert review["labels"]["expected"] == "large"


def test_an_entry_with_two_asks_is_two_requests_in_the_same_envelope() -> None:
    easy, hard = (each for each in client.prompts() if each["labels"]["sender"] == "Codex")
    asked = [request["body"]["input"][-1]["content"][0]["text"] for request in (easy, hard)]
    assert asked == [request["labels"]["prompt"] for request in (easy, hard)]
    assert [request["labels"]["expected"] for request in (easy, hard)] == ["small", "large"]
    assert easy["body"]["input"][0] == hard["body"]["input"][0]
    assert easy["path"] == "/v1/responses"


def test_the_table_has_a_line_per_request_under_its_group() -> None:
    title = ROW | {
        "group": "envelopes",
        "sender": "Open WebUI",
        "reason": "rule housekeeping",
        "left_out": 200.0,
    }
    lines = printed(ROW, ROW | {"prompt": "bye"}, title | {"housekeeping": "title", "domain": ""})
    first = lines.index("PLAIN")
    assert lines[first + 1] == "hi user small difficulty 0.00 is below 0.36 other - 4.0"
    assert lines[first + 2].startswith("bye user small")
    assert lines[lines.index("ENVELOPES") + 1] == "hi Open WebUI small rule housekeeping: title - 200 4.0"


def test_a_narrow_table_keeps_pool_and_reason_of_every_request() -> None:
    long = ROW | {
        "prompt": "a long question " * 9,
        "reason": "rule proofs: matched, and the pool could answer",
    }
    console = Console(width=80, file=io.StringIO())
    console.print(client.table([long, long | {"pool": "large", "error": "HTTP 503: busy " * 5}], 80))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    assert "small rule proofs: matched, and the pool 4.0" in words
    assert "large ≠" in words
    assert "HTTP 503: busy" in words


def test_the_table_marks_a_row_in_the_other_pool_and_names_no_domain_of_unknown_text() -> None:
    reason = "text is out of distribution"
    *_, line, _ = printed(ROW | {"pool": "large", "reason": reason, "unknown": "true"})
    assert line == f"hi user large ≠ {reason} - - 4.0"


def test_the_table_shows_an_error_in_place_of_the_reason() -> None:
    *_, line, _ = printed(ROW | {"error": "HTTP 503: busy"})
    assert line == "hi user small HTTP 503: busy other - 4.0"
