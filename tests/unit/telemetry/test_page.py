"""The page's own server side: views by turns, kept for a second, escaped."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from semroute_extproc.telemetry import page
from semroute_extproc.telemetry.admin import Asked
from semroute_extproc.telemetry.page import PageSite, Turns, dollars, percent


def site(**views: Any) -> PageSite:
    return PageSite(views, {"state": lambda form: {"form": dict(form)}})


def decisions(_: Any = None) -> dict[str, Any]:
    return {"rows": []}


def test_what_is_not_a_view_is_left_to_others() -> None:
    for path in ("/metrics", "/ui", "/ui/", "/ui/none", "/ui/decisions.html", "/ui/../page.py", "/decisions"):
        assert site(decisions=decisions)(Asked(path)) is None
    assert site()(Asked("/")) is None, "a site without this view"


def test_style_and_script_are_paths_of_their_own() -> None:
    style, script = (site()(Asked(f"/ui/page.{kind}")) for kind in ("css", "js"))
    assert style is not None
    assert style.content_type.startswith("text/css")
    assert script is not None
    assert script.content_type.startswith("text/javascript")


def test_no_template_has_an_inline_script_a_style_or_an_address_elsewhere() -> None:
    """The content security policy forbids all of them, so they would silently not work."""
    for file in page.FOLDER.glob("*.html"):
        text = file.read_text()
        assert "style=" not in text, file
        assert "<style" not in text, file
        assert " on" + "click" not in text, file
        assert text.count("<script") == text.count('<script src="/ui/page.js" defer></script>'), file
        assert "http" not in text.replace("<!doctype html>", ""), file
        assert '"//' not in text, file


def test_text_of_clients_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    found = site(decisions=decisions)(Asked("/ui/decisions", f"find={attack}&id=%3Cimg%20src=x%3E"))
    assert found is not None
    assert b"<img" not in found.body
    assert attack.encode() not in found.body


def test_data_is_served_as_json() -> None:
    found = site()(Asked("/ui/state.json", "a=1&b="))
    assert found is not None
    assert found.content_type == "application/json"
    assert b'"a": "1"' in found.body


def test_a_view_is_made_once_for_all_that_ask_within_a_second() -> None:
    made = list[int]()
    subject = site(decisions=lambda _: made.append(1) or decisions())
    for _ in range(5):
        subject(Asked("/ui/decisions"))
    subject(Asked("/ui/decisions", "find=x"))
    assert len(made) == 2


def test_a_form_is_never_kept() -> None:
    made = list[int]()
    subject = site(decisions=lambda _: made.append(1) or decisions())
    for _ in range(2):
        subject(Asked("/ui/decisions", body=b"find=x"))
    assert len(made) == 2


def test_a_form_has_a_bounded_number_of_fields() -> None:
    found = site()(Asked("/ui/state.json", body=b"&".join(b"a=1" for _ in range(17))))
    assert found is not None
    assert found.status == 400


def test_a_view_that_fails_says_so_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    found = site(decisions=lambda _: 1 / 0)(Asked("/ui/decisions"))
    assert found is not None
    assert (found.status, b"ZeroDivision" in found.body) == (500, False)


def test_turns_are_taken_one_at_a_time_and_are_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(page.time, "sleep", slept.append)
    turns = Turns()

    def work(seconds: float) -> None:
        now[0] += seconds

    for seconds in (0.01, 0.01, 3.0, 0.0):
        turns.run(lambda seconds=seconds: work(seconds))
    assert slept == pytest.approx([0.0, 0.04, 0.04, 0.5]), "four times the work, half a second at most"


def test_who_waits_too_long_for_a_turn_is_told_that_the_page_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "WAIT_SECONDS_MAX", 0.01)
    begun, go = threading.Event(), threading.Event()

    def slow(_: Any) -> dict[str, Any]:
        begun.set()
        go.wait(10)
        return decisions()

    subject = site(decisions=slow)
    first = threading.Thread(target=subject, args=[Asked("/ui/decisions")])
    first.start()
    begun.wait(10)
    found = subject(Asked("/ui/decisions", "find=x"))
    go.set()
    first.join()
    assert found is not None
    assert found.status == 503


def test_amounts_are_readable() -> None:
    assert [dollars(each) for each in (1234.567, 1.0, 0.01234, 0.0)] == [
        "$1,234.57",
        "$1.00",
        "$0.0123",
        "$0",
    ]
    assert [percent(each) for each in (0.2861, None)] == ["28.6%", "–"]
