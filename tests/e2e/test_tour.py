"""The second half of docs/tour.md: a share of 30 %, and an incident from its alert to its end.

Everything that the tour says is asserted here, and what it quotes is looked up in the page's text.
SEMROUTE_SCREENSHOTS=1 also takes its pictures (`make screenshots`).
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from alerts import ALERTS, selectors
from browser import CHROMIUM, DOCS, SCREENSHOT_BYTES_MAX, SCREENSHOTS, browser
from gateway import Background, chat, wait_for
from semroute_demo import client
from semroute_demo.pool import Pool
from semroute_demo.process import HTTP
from started import FAST, Up, run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

TOUR = " ".join((DOCS / "tour.md").read_text().replace("\n> ", " ").split())
WEAK, STRONG = "tiny-8b-instruct", "huge-70b-instruct"
TEXTS = [
    each["body"]["messages"][-1]["content"]
    for each in client.prompts()
    if each["path"] == "/v1/chat/completions" and isinstance(each["body"]["messages"][-1]["content"], str)
]
REQUESTS = 400
HELD_SECONDS = 65.0 if SCREENSHOTS else 20.0  # of the incident; the alert waits for a minute
SCORED = re.compile(r"(\S+ failed \(\w+\): )?(difficulty|text is) ")


class Answer(NamedTuple):
    status: int
    pool: str
    reason: str
    request_id: str


class Team:
    """The clients of a running `up`, and who looks at its page."""

    def __init__(self, up: Up, chromium: Any) -> None:
        self.up, self._numbers, self._chromium = up, itertools.count(), chromium
        found = re.search(r"The page +(\S+)/\n", up.printed)
        assert found is not None
        self.admin = found[1]

    def send(self, count: int) -> list[Answer]:
        """Requests that name the stronger model or `auto`, six at a time."""
        with ThreadPoolExecutor(6) as threads:
            return [*threads.map(self._ask, itertools.islice(self._numbers, count))]

    def _ask(self, number: int) -> Answer:
        body = chat(TEXTS[number % len(TEXTS)], model=("org/Huge-70B-Instruct", "auto")[number % 2])
        url, headers = f"http://127.0.0.1:{self.up.port}", {"x-request-id": f"tour-{number:04}"}
        answer = HTTP.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60.0)
        pool, reason = (answer.headers.get(f"x-semroute-{name}", "") for name in ("pool", "reason"))
        return Answer(answer.status_code, pool, reason, f"tour-{number:04}")

    def metrics(self) -> str:
        return HTTP.get(f"{self.admin}/metrics").text

    def shown(self, path: str, picture: str = "", part: str = "header", height: int = 760) -> str:
        """The text of a view, without a script; with a picture of it from a part on."""
        page = self._chromium.new_page(viewport={"width": 900, "height": 760}, java_script_enabled=False)
        page.goto(f"{self.admin}{path}")
        if picture:
            file = DOCS / f"tour-{picture}.png"
            if SCREENSHOTS:
                top = page.locator(part).bounding_box()["y"]
                clip = {"x": 0, "y": top, "width": 900, "height": height}
                page.screenshot(path=file, full_page=True, clip=clip)
            assert 5_000 < file.stat().st_size < SCREENSHOT_BYTES_MAX
            assert f"]({file.name})" in TOUR
        text = str(page.locator("main").inner_text())
        page.close()
        return text


@pytest.fixture
def pools() -> Iterator[tuple[Background, Pool, Pool]]:
    background = Background()
    weak, strong = (
        Pool("small", ("org/Tiny-8B-Instruct",), FAST),
        Pool("large", ("org/Huge-70B-Instruct", "auto"), FAST),
    )
    for pool in (weak, strong):
        background.run(pool.start())
    yield background, weak, strong
    for pool in (weak, strong):
        background.run(pool.stop())
    background.close()


@pytest.fixture
def team(tmp_path: Path, pools: tuple[Background, Pool, Pool]) -> Iterator[Team]:
    up = Up(tmp_path, *(f"http://127.0.0.1:{pool.port}" for pool in pools[1:]))
    with browser() as chromium:
        yield Team(up, chromium)
    up.stop()


def cells(text: str, name: str) -> list[str]:
    """The row of the table whose first cell is `name`, the last one if there are several."""
    return [line for line in text.splitlines() if line.startswith(f"{name}\t")][-1].split("\t")


def quoted(*texts: str) -> None:
    """The tour says each of these."""
    for text in texts:
        assert " ".join(text.split()) in TOUR, text


def excluded(page: str) -> bool:
    """Whether the expression of SemroutePoolExcluded holds on a metrics page."""
    assert ALERTS["SemroutePoolExcluded"]["expr"] == "max by (pool) (semroute_pool_excluded) == 1"
    return selectors("SemroutePoolExcluded")[0].total(page) == 1.0


def semroute(folder: Path, *arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "semroute_extproc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_team_goes_to_30_percent_and_through_an_incident(
    team: Team, pools: tuple[Background, Pool, Pool], tmp_path: Path
) -> None:
    background, weak, _ = pools

    # A share of 30 %.
    assert {(each.status, each.pool) for each in team.send(40)} == {(200, STRONG)}
    wait_for(lambda: "Counted in the answers" in team.up.printed, 40, "the report to count tokens")
    assert re.search(r"They cost \$\S+; routing has saved \$0\.", team.up.printed)
    done = run("go", "--share", "0.3", "--dir", str(tmp_path))
    quoted(*done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 2
    wait_for(lambda: any(SCORED.match(each.reason) for each in team.send(10)), 20, "a routed request")
    answers = team.send(REQUESTS)
    assert {each.status for each in answers} == {200}
    scored = [each for each in answers if SCORED.match(each.reason)]
    assert 0.2 < len(scored) / REQUESTS < 0.4

    def counted() -> int:
        return sum(map(int, re.findall(r"^(?:strategy pair|routed)\t\S+\t(\d+)$", team.shown("/"), re.M)))

    wait_for(lambda: counted() >= 40 + REQUESTS, 20, "every request to be on the page")
    text = team.shown("/", "share")
    assert "estimated\n" not in text
    assert "Dollars are of the tokens that the answers state" in text
    configured, realized, requests = cells(text, "pair")[1:4]
    assert configured == f"30.0% {STRONG}"
    assert abs(float(realized.rstrip("%")) / 100 - 0.3) < 0.15
    assert int(requests) >= len(scored)
    quoted("Share of the strong pool", "routed", "strategy pair")

    # Before more of it.
    changed = (tmp_path / "semroute.yaml").read_text().replace("strong_share: 0.3", "strong_share: 0.2")
    (tmp_path / "new.yaml").write_text(changed)
    said = semroute(tmp_path, "replay", "log", "--config", "new.yaml", "--old", "semroute.yaml")
    quoted("semroute replay log --config new.yaml --old semroute.yaml", "dollars per 1,000", "flips")
    assert re.search(r"dollars per 1,000 .*\n  difference +-0\.", said)
    assert f"flips\n  {STRONG} to {WEAK}: " in said
    quoted("semroute calibrate log --strong-share 0.3")
    said = semroute(tmp_path, "calibrate", "log", "--strong-share", "0.3")
    assert re.search(r"strong share +0\.\d+ \[", said)
    judged = {"request_id": scored[0].request_id, "label": "good"}
    assert HTTP.post(f"{team.admin}/outcomes", json=judged).json() == {"accepted": 1}
    judged_one = f'semroute_reported_total{{kind="good",pool="{scored[0].pool}",source="user"}} 1.0'
    wait_for(lambda: judged_one in team.metrics(), 10, "the outcome to be counted")

    # The cheaper server dies.
    background.run(weak.stop())
    broken = team.send(40)

    def sent_until(done: Callable[[], bool], what: str) -> None:
        wait_for(lambda: broken.extend(team.send(10)) or done(), 60, what)

    sent_until(lambda: excluded(team.metrics()), "the pool to be excluded")
    began = time.monotonic()
    while time.monotonic() - began < HELD_SECONDS:
        broken += team.send(20)
        assert excluded(team.metrics()), "the alert waits for a minute of this"
        time.sleep(0.5)
    # After many good requests the metrics page is missed first. Then the request that tests the pool fails.
    sent_until(lambda: "excluded: unreachable" in team.shown("/"), "a request to test the pool")
    assert {(each.status, each.pool) for each in broken} == {(200, STRONG)}, "no client has seen it"
    summary = ALERTS["SemroutePoolExcluded"]["annotations"]["summary"]
    quoted("SemroutePoolExcluded", summary.replace("{{ $labels.pool }}", WEAK))
    text = team.shown("/", "incident", "h2:text-is('Share of the strong pool')", 470)
    assert cells(text, WEAK)[-2:] == ["excluded: unreachable", "metrics page not read"]
    assert float(cells(text, "pair")[2].rstrip("%")) > 30.0
    quoted("excluded: unreachable", "metrics page not read")
    failed = [each for each in broken if each.reason.startswith(f"{WEAK} failed")][-1]
    text = team.shown(f"/ui/decisions?id={failed.request_id}", "decision")
    assert f"{WEAK} failed (unreachable): difficulty " in text
    quoted(f"{WEAK} failed (unreachable)")
    assert "excluded: unreachable" in team.shown("/ui/pools")
    with pytest.raises(httpx2.ConnectError):
        HTTP.get(f"http://127.0.0.1:{weak.port}/health")

    # It is started again.
    background.run(weak.start(port=weak.port))
    wait_for(lambda: WEAK in {each.pool for each in team.send(20)}, 30, "the server to be tested")
    wait_for(lambda: team.send(10) and not excluded(team.metrics()), 20, "the exclusion to end")
    text = team.shown("/")
    assert cells(text, WEAK)[-2] == "serving"
    quoted("serving")
