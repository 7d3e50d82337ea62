"""`semroute demo`, as a user and as a script would run it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from semroute_extproc.encoder.bundle import default_bundle, language_bundles, read_manifest

Rows = list[dict[str, Any]]

COMMAND = [sys.executable, "-m", "semroute_extproc", "demo"]


@pytest.fixture(scope="module")
def rows() -> Rows:
    done = subprocess.run([*COMMAND, "--once", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_row_tells_a_decision_that_was_carried_out(rows: Rows) -> None:
    *requests, _ = rows
    assert len(requests) >= 60
    for row in requests:
        assert row["status"] == 200, row
        assert row["pool"] == row["answered_by"], row
        assert row["reason"], row
        # About a model that was named there was nothing to decide.
        assert (row["decision_ms"] is None) == (row["sender"] == "user, named model"), row


def test_a_request_goes_to_the_pool_that_is_expected_unless_no_bundle_knows_its_language(rows: Rows) -> None:
    *requests, _ = rows
    manifests = map(read_manifest, {default_bundle(), *language_bundles().values()})
    known = {language for manifest in manifests for language in manifest.languages}
    judged = [row for row in requests if row["language"]]
    assert [row for row in judged if (row["unknown"] == "true") == (row["language"] in known)] == []
    assert {row["pool"] for row in judged if row["unknown"] == "true"} == {"large"}
    assert [row for row in requests if row["unknown"] != "true" and row["pool"] != row["expected"]] == []


def test_the_rows_cover_apis_options_and_languages(rows: Rows) -> None:
    *requests, _ = rows
    assert {row["group"] for row in requests} == {"plain", "envelopes", "agents", "languages"}
    paths = {f"/v1/{path}" for path in ("chat/completions", "completions", "responses", "messages")}
    assert {row["path"] for row in requests} == paths
    assert {row["stream"] for row in requests} == {True, False}
    sent = {row["sender"]: row for row in requests}
    assert "small lacks image" in sent["user, with an image"]["reason"]
    assert sent["user, named model"]["difficulty"] is None
    assert sent["x-tier: internal"]["rule"] == "internal"
    asked: dict[str, set[str]] = {}
    for row in requests:
        if row["group"] == "languages" and row["language"]:
            asked.setdefault(row["language"], set()).add(row["expected"])
    assert asked.pop("is") == {"large"}
    assert asked.keys() == {"ar", "de", "es", "fr", "ja", "pt", "ru", "zh"}
    assert all(expected == {"small", "large"} for expected in asked.values())


def test_an_envelope_does_not_change_the_decision(rows: Rows) -> None:
    """The bare request and five clients' envelopes around it have the same judged text."""
    *requests, _ = rows
    wrapped = [row for row in requests if row["group"] == "envelopes" and not row["housekeeping"]]
    for pool in ("small", "large"):
        same = [row for row in wrapped if row["expected"] == pool]
        assert len(same) == 6
        assert {row["pool"] for row in same} == {pool}
        assert len({row["difficulty"] for row in same}) == 1


def test_housekeeping_goes_to_the_small_pool_whatever_the_chat_is_about(rows: Rows) -> None:
    *requests, _ = rows
    kinds = [row["housekeeping"] for row in requests if row["rule"] == "housekeeping"]
    assert kinds == ["title", "title", "follow_ups", "commit_message"]
    assert kinds == [row["housekeeping"] for row in requests if row["housekeeping"]]


def test_an_agents_conversation_keeps_its_pool_until_it_is_stuck_or_harder(rows: Rows) -> None:
    *requests, _ = rows
    steps = [(row["pool"], row["session"], row["rule"]) for row in requests if row["group"] == "agents"]
    renames, hard, approval, february, mutex = steps[:5], steps[5:8], steps[8], steps[9:12], steps[12:]
    first, loop, stuck = ("small", "new", ""), ("small", "locked", ""), ("large", "moved", "stuck")
    assert renames[:4] == [first, loop, loop, stuck]
    # The strategy chooses the small pool ("kept") or the large one too ("same").
    assert (renames[4][0], renames[4][1] in ("kept", "same")) == ("large", True)
    assert hard == [("large", "new", ""), ("large", "locked", ""), ("large", "same", "")]
    assert approval == first
    assert february == [first, stuck, ("large", "kept", "")]
    assert [(pool, session) for pool, session, _ in mutex] == [("small", "new"), ("large", "moved")]


def test_the_summary_follows_from_the_rows(rows: Rows) -> None:
    *requests, summary = rows
    assert summary["summary"] is True
    assert summary["ok"] is True
    assert summary["requests"] == len(requests)
    large = sum(row["answered_by"] == "large" for row in requests)
    assert summary["pools"] == {"small": len(requests) - large, "large": large}
    assert summary["strong_share"] == pytest.approx(large / len(requests), abs=1e-4)
    assert summary["as_expected"] == sum(row["pool"] == row["expected"] for row in requests)
    paid = sum(row["cost"] for row in requests)
    assert summary["cost"] == pytest.approx(paid)
    assert 0 < paid < summary["cost_always_strong"]


def test_it_stays_up_serves_and_stops_cleanly(tmp_path: Path) -> None:
    """Ctrl-C ends every process and leaves nothing behind; the commands to try fit a narrow terminal."""
    output = tmp_path / "out"
    environment = {**_environment(tmp_path), "COLUMNS": "80"}
    with output.open("w") as file:
        process = subprocess.Popen(COMMAND, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 90
        while "Ctrl-C stops everything" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        assert "/v1/chat/completions -H 'content-type: application/json' \\\n" in output.read_text()
        address = output.read_text().split("curl -s ")[1].split("/v1/models")[0]
        with urllib.request.urlopen(f"{address}/v1/models", timeout=5) as response:
            assert "auto" in response.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    assert status == 0, output.read_text()
    assert not list(tmp_path.glob("semroute-demo-*"))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/v1/models", timeout=5)


def _environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "TMPDIR": str(folder), "COLUMNS": "160"}
