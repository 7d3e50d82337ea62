"""`semroute demo`, as a user and as a script would run it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "semroute_extproc", "demo"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    done = subprocess.run([*COMMAND, "--once", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_row_tells_a_decision_that_was_carried_out(rows: list[dict[str, object]]) -> None:
    *requests, _ = rows
    assert len(requests) >= 30
    for row in requests:
        assert row["status"] == 200, row
        assert row["pool"] == row["answered_by"], row
        assert row["reason"], row
        # About a model that was named there was nothing to decide.
        assert (row["decision_ms"] is None) == (row["kind"] == "named model"), row


def test_the_rows_cover_what_the_demo_promises(rows: list[dict[str, object]]) -> None:
    *requests, _ = rows
    kinds = {str(row["kind"]) for row in requests}
    promised = {"chat", "code", "proof", "small talk", "tools", "image", "long", "Chinese", "streaming"}
    assert promised <= kinds
    assert {row["path"] for row in requests} >= {"/v1/chat/completions", "/v1/completions", "/v1/messages"}
    by_kind = {row["kind"]: row for row in requests}
    assert by_kind["image"]["pool"] == "large"
    assert by_kind["named model"]["model"] == "deepseek-ai/DeepSeek-V3.2"
    assert by_kind["named model"]["difficulty"] is None
    assert by_kind["rule"]["pool"] == "small"
    assert [row["pool"] for row in requests if row["kind"] == "quality"] == ["large", "small"]


def test_the_summary_follows_from_the_rows(rows: list[dict[str, object]]) -> None:
    *requests, summary = rows
    assert summary["summary"] is True
    assert summary["ok"] is True
    assert summary["requests"] == len(requests)
    large = sum(row["answered_by"] == "large" for row in requests)
    assert summary["pools"] == {"small": len(requests) - large, "large": large}
    assert summary["strong_share"] == pytest.approx(large / len(requests), abs=1e-4)
    paid = sum(float(str(row["cost"])) for row in requests)
    assert summary["cost"] == pytest.approx(paid)
    assert 0 < paid < float(str(summary["cost_always_strong"]))


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
        assert "/v1/chat/completions -H 'content-type: application/json' -H" in output.read_text()
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
