"""What the views of the page show, for one process and for several."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from viewed import CONFIG, Server

from semroute_extproc.events import Accounted
from semroute_extproc.request.usage import Usage
from semroute_extproc.serve.views import intervals, money, present, share_costs
from semroute_extproc.settings.pools import Pool
from semroute_extproc.telemetry.admin import Asked
from semroute_extproc.telemetry.drift import BLOCK, BLOCKS
from semroute_extproc.telemetry.page import VIEWS, PageSite


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    running = Server(tmp_path)
    yield running
    await running.live.close()


@pytest.mark.parametrize("path", VIEWS.values())
async def test_every_view_is_shown_before_and_after_the_first_request(server: Server, path: str) -> None:
    assert "<h1>" in await server.get(path)
    await server.send("hard")
    assert "<h1>" in await server.get(f"{path}?again")


async def test_now_counts_by_pool_and_reason_and_compares_shares(server: Server) -> None:
    for text in ("hard", "easy", "easy", "easy"):
        await server.send(text)
    await server.send("hard", **{"x-tier": "internal"})
    found = present([server.views.state({})])
    assert sorted(found["table"]) == [
        ["rule internal", "small", 1],
        ["strategy pair", "large", 1],
        ["strategy pair", "small", 3],
    ]
    [pair] = found["pairs"]
    assert (pair["strong_share"], pair["realized"], pair["requests"]) == (0.3, 0.25, 4)
    assert found["money"]["sample"] == 5
    assert 0.0 < found["money"]["total"] < found["money"]["always"]


async def test_the_workers_are_counted_together(server: Server) -> None:
    for text in ("hard", "easy"):
        await server.send(text)
    state = json.loads(json.dumps(server.views.state({})))
    one, two = present([state]), present([state, state])
    assert two["table"] == [[*labels, 2 * count] for *labels, count in one["table"]]
    assert two["money"]["total"] == pytest.approx(2 * one["money"]["total"])
    assert (two["workers"], two["pairs"][0]["realized"]) == (2, one["pairs"][0]["realized"])


async def test_a_reason_has_one_color_in_every_minute(server: Server) -> None:
    await server.send("hard")
    state = server.views.state({})
    minute, rows = state["minutes"][-1]
    state["minutes"].insert(0, (minute - 1, [["decisions", "small", "internal", "", "", "routed", 3]]))
    rows.append(["decisions", "small", "a-first", "", "", "routed", 2])
    site = PageSite({"now": lambda _: present([state])})
    page = site(Asked("/"))
    assert page is not None
    charts = page.body.decode().split("<figure>")
    colors = [re.findall(r'<rect x[^>]*class="(s\d)"', minute) for minute in charts[2].split("<g>")[1:]]
    assert colors == [["s1"], ["s0", "s2"]], "a-first, internal, pair"


async def test_a_decision_is_found_by_its_request_id(server: Server) -> None:
    await server.send("hard", "wanted-1")
    await server.send("easy", "other-2")
    shown = await server.get("/ui/decisions?id=wanted-1")
    assert "is at least" in shown
    assert "threshold" in shown
    assert "other-2" not in await server.get("/ui/decisions?find=wanted")
    assert "not among the last" in await server.get("/ui/decisions?id=wanted")


class TestExplain:
    async def test_it_is_what_the_server_decides(self, server: Server) -> None:
        shown = await server.post("/ui/explain", b"text=hard&model=auto")
        outcome = await server.send("hard")
        assert outcome.reason in shown
        assert "curl -s http://127.0.0.1:10000/v1/chat/completions" in shown

    async def test_it_leaves_no_trace(self, server: Server) -> None:
        await server.send("easy", "id", **{"x-session-id": "conversation"})
        before = json.dumps(server.controllers.status()), server.metrics.exposition(), len(server.recent.seen)
        for _ in range(3):
            await server.post("/ui/explain", b"text=hard&model=auto&headers=x-session-id:+conversation")
        after = json.dumps(server.controllers.status()), server.metrics.exposition(), len(server.recent.seen)
        assert before == after

    async def test_a_body_and_headers_are_taken_as_they_are(self, server: Server) -> None:
        body = b'text={"model":"auto","messages":[{"role":"user","content":"hard"}]}&headers=X-Tier:+internal'
        shown = await server.post("/ui/explain", body)
        assert "rule internal" in shown
        assert "-Hx-tier: internal" in shown

    async def test_json_that_is_no_body_is_a_prompt(self, server: Server) -> None:
        for text in (b"[1]", b'{"a":1}', b"3", b"hard [", b"[[1,2]]"):
            assert "Text that was judged" in await server.post("/ui/explain", b"model=auto&text=" + text)

    @pytest.mark.parametrize(
        ("form", "shown"),
        [
            ({"text": '{"model":"org/small","messages":[]}'}, "named model"),
            ({"text": '{"model":"other","messages":[]}'}, "passed through: unknown model"),
            ({"text": '{"messages":5}'}, "passed through: no model"),
            ({"text": "x", "path": "/v1/unknown"}, "passed through: unknown path"),
            ({"text": "x", "headers": "content-encoding: compress"}, "unsupported encoding"),
            ({"text": '{"model":"auto","messages":[{"content":[{"type":"input_audio"}]}]}'}, "400"),
        ],
    )
    async def test_what_is_not_routed_is_explained_too(
        self, server: Server, form: dict[str, str], shown: str
    ) -> None:
        assert shown in await server.post("/ui/explain", urlencode(form | {"model": "auto"}).encode())

    @pytest.mark.parametrize(
        "text",
        [
            r'{"model":"auto","messages":[{"role":"user","content":"\ud800"}]}',
            r'{"model" : "auto", "user" : "\ud800", "messages":[{"role":"user","content":"hard"}]}',
            '{"input":' + "[" * 50_000 + "]" * 50_000 + "}",
            "[" * 50_000,
        ],
        ids=lambda text: text[:40],
    )
    async def test_a_body_that_is_hard_to_read_is_explained_too(self, server: Server, text: str) -> None:
        shown = await server.post("/ui/explain", urlencode({"text": text, "model": "auto"}).encode())
        assert "<h1>" in shown

    @pytest.mark.parametrize("form", ["explain?text=hard&model=auto", "config?yaml=a%3A+1", "config?file=x"])
    async def test_a_form_is_not_sent_by_a_link(self, server: Server, form: str) -> None:
        """Browsers tell the site of a form that is posted, and of a link not all of them do."""
        assert await server.get(f"/ui/{form}") == await server.get(f"/ui/{form.partition('?')[0]}")

    async def test_a_header_that_is_none_is_told(self, server: Server) -> None:
        assert "name: value" in await server.post("/ui/explain", b"text=x&headers=nonsense")

    async def test_what_was_pasted_is_escaped(self, server: Server) -> None:
        shown = await server.post("/ui/explain", b"model=auto&text=<script>alert(1)</script>")
        assert "<script>alert" not in shown
        assert "&lt;script&gt;alert" in shown


class TestFrontier:
    def test_the_highest_scores_go_to_the_strong_pool_first(self) -> None:
        weak, strong = (
            Pool(cluster="c", model="m", price={"input": price, "output": 0.0}) for price in (1.0, 10.0)
        )
        costs = share_costs([(1_000_000, 0), (0, 0), (0, 0), (0, 0)], weak, strong)
        assert costs[0] == pytest.approx(250.0)
        assert costs[25] == costs[100] == pytest.approx(2_500.0), "the others are free"

    def test_a_pool_without_a_price_gives_no_costs(self) -> None:
        assert share_costs([(1, 1)], Pool(cluster="c", model="m"), Pool(cluster="c", model="m")) == []

    def test_intervals_are_wilson_s(self) -> None:
        # 8 of 10: Wilson's interval in the literature is 0.490 to 0.943.
        [(q, low, high)] = intervals([0.8], 10)
        assert (q, low, high) == (0.8, pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))

    def test_outcomes_on_another_scale_have_no_interval(self) -> None:
        assert intervals([-1.0, 7.0], 10) == [(-1.0, -1.0, -1.0), (7.0, 7.0, 7.0)]
        assert intervals(None, 10) == []

    async def test_prices_alone_say_nothing_about_quality(self, server: Server) -> None:
        shown = await server.get("/ui/frontier?share=40")
        assert "Quality is not known" in shown
        assert "strong_share: 0.4" in shown
        assert "expected quality" not in shown

    async def test_the_cost_is_that_of_the_own_requests_once_there_are_enough(self, server: Server) -> None:
        assert "until 50 of your own" in await server.get("/ui/frontier?share=1")
        for _ in range(50):
            await server.send("easy")
        assert "the last 50 requests" in await server.get("/ui/frontier?share=2")

    @pytest.mark.parametrize("share", ["-1", "x", "1e9", "999", "²"])
    async def test_nonsense_is_a_share_within_bounds(self, server: Server, share: str) -> None:
        assert "strong_share: " in await server.get(f"/ui/frontier?share={share}")


class TestConfig:
    async def test_a_change_is_shown_and_not_made(self, server: Server) -> None:
        changed = CONFIG.replace("strong_share: 0.3", "strong_share: 0.4").encode()
        shown = await server.post("/ui/config", b"yaml=" + changed.replace(b"&", b"%26"))
        assert "strategies.pair.strong_share" in shown
        assert server.live.snapshot.number == 1

    async def test_what_is_wrong_is_told_with_its_place(self, server: Server) -> None:
        shown = await server.post("/ui/config", b"yaml=" + CONFIG.replace("large\n", "larg\n").encode())
        assert "pasted:4:" in shown
        assert "did you mean" in shown
        assert "/proc/" not in shown

    async def test_a_change_that_needs_a_restart_is_rejected_as_by_a_reload(self, server: Server) -> None:
        assert "needs a restart" in await server.post(
            "/ui/config", f"yaml={CONFIG}server: {{workers: 2}}".encode()
        )

    async def test_a_file_next_to_the_live_one_is_checked_and_none_elsewhere(self, server: Server) -> None:
        (server.file.parent / "next.yaml").write_text(CONFIG.replace("0.3}", "0.5}"))
        assert "next.yaml is valid and" in await server.post("/ui/config", b"file=next.yaml")
        assert "changes nothing" in await server.post("/ui/config", b"file=")
        for name in (b"../etc/passwd", b"/etc/passwd", b".."):
            shown = await server.post("/ui/config", b"file=" + name)
            assert "root:" not in shown
            assert "is valid and" not in shown

    async def test_a_rejected_file_is_told_on_the_first_view(self, server: Server) -> None:
        server.file.write_text("pools: {}\n")
        await server.live.reload()
        assert "was rejected" in await server.get("/")
        server.file.write_text(CONFIG)
        await server.live.reload()
        assert "was rejected" not in await server.get("/?again")


async def test_drift_is_shown_in_words_of_the_worker_that_differs_most(tmp_path: Path) -> None:
    server = Server(tmp_path, CONFIG + "server: {deadline_ms: 10000}\n")  # no text falls back
    assert f"0 texts so far. The first {BLOCK * BLOCKS:,} are" in await server.get("/")
    for _ in range(BLOCK * BLOCKS):
        await server.send("easy")
    calm = server.views.state({})
    assert "as before" in await server.get("/?calm")
    for _ in range(BLOCK * BLOCKS):
        await server.send("hard")
    changed = json.loads(json.dumps(server.views.state({})))
    shown = await server.get("/?changed")
    assert "The texts have changed since the start of the process." in shown
    row = re.search(r"<tr><th>difficulty</th>.*?</tr>", shown, re.DOTALL)
    assert row is not None
    assert ">changed<" in row[0]
    both = present([changed, calm, calm])["drift"]
    assert [each["worst"] for each in both.values()] == [each["worst"] for each in changed["drift"]]


PRICES: dict[str, Any] = {
    "small": {"price": {"input": 1.0, "output": 1.0}},
    "large": {"price": {"input": 2.0, "output": 2.0}},
}


def test_no_dollars_are_shown_without_prices_or_requests() -> None:
    state = {"pools": PRICES, "sizes": {"small": [1, 10, 10]}}
    assert money([state], {}, {}, {}) is None
    unpriced = {"pools": {**PRICES, "large": {"price": None}}, "sizes": state["sizes"]}
    assert money([unpriced], {("rule r", "small"): 1}, {}, {}) is None


def test_dollars_are_those_of_routed_requests_with_their_pools_mean_size() -> None:
    state = {"pools": PRICES, "sizes": {"small": [1, 10, 10]}}
    found = money([state], {("rule r", "small"): 1_000_000, ("named", "large"): 5}, {}, {})
    assert found is not None
    assert (found["spent"], found["total"], found["always"]) == ({"small": 20.0}, 20.0, 40.0)
    assert (found["strong"], found["sample"]) == ("large", 1)


def test_a_shadow_policy_would_have_saved_what_its_pools_cost_less() -> None:
    """As after `otherwise: {pool: large}` with a shadow that decides for everything."""
    state = {"pools": PRICES, "sizes": {"large": [2, 20, 20]}}
    shadows = {("live", "auto", "small", "differ"): 500_000, ("live", "auto", "large", "agree"): 500_000}
    shadows[("live", "auto", "", "undecided")] = 7
    found = money([state], {("routed", "large"): 1_000_000}, shadows, {})
    assert found is not None
    assert (found["total"], found["shadows"]) == (40.0, {"auto": 10.0})


async def test_dollars_of_accounted_answers_replace_the_estimate(server: Server) -> None:
    await server.send("easy")
    names = {
        "request_id": "id",
        "pool": "small",
        "rule": "",
        "model": "auto",
        "tenant": "",
        "served": "org/small",
    }
    dollars = {"dollars": 0.25, "baseline_dollars": 1.0, "cache_saved_dollars": 0.125}
    unknown = dict.fromkeys(("api", "first_token_seconds", "tokens_per_second"))
    rest = {"finish": "stop", "problem": "", "usage": Usage(), "parents": (), "started_ns": 1, "ended_ns": 2}
    server.emit(Accounted(**names, **dollars, **unknown, **rest))
    state = server.views.state({})
    found = present([state, state])["money"]
    assert (found["total"], found["always"], found["cache"], found["sample"]) == (0.5, 2.0, 0.25, 0)
    assert found["spent"] == {"small": 0.5}
    shown = await server.get("/")
    assert "$0.125 by the prefix cache" in shown
    assert "estimated" not in shown
