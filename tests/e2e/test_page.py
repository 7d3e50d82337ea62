"""The page in a real Chromium, in front of a sidecar that a real Envoy sends the demo's requests.

SEMROUTE_SCREENSHOTS=1 also writes the pictures of docs/ (`make screenshots`).
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browser import CHROMIUM, DOCS, SCREENSHOT_BYTES_MAX, SCREENSHOTS, browser
from gateway import Background, Gateway, Pools, start_gateway, start_sidecar, wait_for
from semroute_bench import load
from semroute_bench.client import connect
from semroute_bench.servers import Measured
from semroute_demo import client
from semroute_demo.sidecar import CONFIG_PATH

from semroute_extproc.telemetry.drift import BLOCK, BLOCKS, LARGE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

TRAFFIC_SECONDS = 240.0  # of the traffic in the pictures, so that they show several minutes
VIEWS = {"now": "/"} | {
    name: f"/ui/{name}" for name in ("decisions", "explain", "frontier", "pools", "config")
}
PHONE = {"width": 360, "height": 740}
HARD = "Prove that every finite integral domain is a field, and say where finiteness is used."


class Running:
    """The gateway, and requests through it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.url = gateway, f"http://{gateway.sidecars[0].admin}"
        self.http = httpx2.Client(base_url=gateway.url, timeout=30)
        self.sent, self.reasons = 0, dict[str, str]()
        state = json.loads(gateway.sidecars[0].read_admin("/ui/state.json")[1])
        self.before = sum(row[-1] for _, rows in state["minutes"] for row in rows if row[0] == "decisions")

    @property
    def count(self) -> int:
        """Every request, with those that waited for the sidecar."""
        return self.before + self.sent

    def send(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> str:
        """Send a request; its ID."""
        request_id = f"page-{self.sent:04}"
        answer = self.http.post(path, json=body, headers={"x-request-id": request_id, **headers})
        assert answer.status_code == 200, answer.text
        self.sent += 1
        self.reasons[request_id] = answer.headers.get("x-semroute-reason", "")
        return request_id

    def ask(self, text: str = HARD) -> str:
        return self.send({"model": "auto", "messages": [{"role": "user", "content": text}]})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    background, folder = Background(), tmp_path_factory.mktemp("page")
    pools = Pools(background)
    for pool, model in zip(pools, ("Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-V3.2"), strict=True):
        pool.models = (model, "auto", "auto-fast")
    pages = {
        f"POOLS__{pool.name.upper()}__METRICS": f"http://127.0.0.1:{pool.port}/metrics" for pool in pools
    }
    sidecar = start_sidecar(folder, config=CONFIG_PATH, SERVER__DRAIN_SECONDS="0", **pages)
    gateway = start_gateway(folder, [sidecar], pools)
    subject = Running(gateway)
    ends = time.monotonic() + (TRAFFIC_SECONDS if SCREENSHOTS else 0.0)
    for number in itertools.count():
        for prompt in client.prompts():
            subject.send(prompt["body"], prompt["path"], **prompt["headers"])
            time.sleep(0.2 * (1 + number % 3) if SCREENSHOTS else 0.0)
        if time.monotonic() >= ends:
            break
    yield subject
    subject.http.close()
    gateway.envoy.stop()
    sidecar.stop()
    pools.stop()
    background.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def open_page(chromium: Any, running: Running) -> Iterator[Callable[..., Any]]:
    """Opens a view; at the end nothing may have been loaded from elsewhere, refused or thrown."""
    wrong, contexts = list[str](), list[Any]()

    def watch(page: Any) -> None:
        page.on(
            "console", lambda each: wrong.append(each.text) if each.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("request", lambda each: None if each.url.startswith(running.url) else wrong.append(each.url))

    def open_view(view: str, query: str = "", **options: Any) -> Any:
        contexts.append(chromium.new_context(base_url=running.url, **options))
        page = contexts[-1].new_page()
        watch(page)
        page.goto(VIEWS[view] + query)
        return page

    yield open_view
    for context in contexts:
        context.close()
    assert wrong == []


def total(page: Any) -> int:
    """The number of requests that the first view shows."""
    return int(page.locator("dt:text-is('requests') + dd").inner_text().replace(",", ""))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_every_view_shows_its_content_also_without_a_script(
    open_page: Callable[..., Any], view: str, script: bool
) -> None:
    page = open_page(view, java_script_enabled=script)
    assert page.locator("h1").count() == 1
    assert page.locator("nav a[aria-current=page]").inner_text().lower() == view
    assert page.locator("main").inner_text().count("\n") > 3


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone_and_is_readable_in_light_and_dark(
    open_page: Callable[..., Any], view: str, scheme: str
) -> None:
    page = open_page(view, viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(CONTRASTS) == [], "texts with a contrast below 4.5 (WCAG 2.2, 1.4.3)"
    small = "each => each.offsetHeight > 0 && each.offsetHeight < 24"
    assert (
        page.evaluate(f"[...document.querySelectorAll('nav a, button, input')].filter({small}).length") == 0
    )
    assert page.evaluate(TEXT_HEIGHTS) == [], "texts of charts that are too small to read"


TEXT_HEIGHTS = """() => [...document.querySelectorAll("svg text")]
  .filter((each) => each.getBoundingClientRect().height < 10)
  .map((each) => each.textContent)"""
CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("main *, header *, footer")]
    .filter((node) => [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim()))
    .filter((node) => node.getClientRects().length && !node.closest("svg"))
    .map((node) => [node, light(parse(getComputedStyle(node).color)), light(behind(node))])
    .filter(([, a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5)
    .map(([node]) => node.textContent.trim().slice(0, 40));
}"""


def test_now_has_every_request_and_follows_the_traffic_by_itself(
    open_page: Callable[..., Any], running: Running
) -> None:
    page = open_page("now")
    wait_for(lambda: total(page) >= running.count, 20, "the last request to be counted")
    assert total(page) == running.count
    for name in ("small", "large"):
        assert page.locator(f"svg.chart title:has-text('{name}')").count() > 0
    running.ask()
    wait_for(lambda: total(page) == running.count, 20, "the page to refresh itself")
    assert page.locator("text=saved, estimated").count() == 1


def test_a_reader_keeps_the_place_while_the_page_refreshes(open_page: Callable[..., Any]) -> None:
    page = open_page("now")
    page.locator("main a:text-is('small')").focus()
    page.evaluate("window.old = document.querySelector('dl')")
    wait_for(lambda: page.evaluate("window.old !== document.querySelector('dl')"), 20, "the next refresh")
    assert page.evaluate("document.activeElement.textContent") == "small"


def test_a_request_is_found_by_its_id_with_all_about_its_decision(
    open_page: Callable[..., Any], running: Running
) -> None:
    request_id = running.ask("Where is Lima?")
    page = open_page("decisions", f"?find={request_id}")
    page.get_by_role("link", name=request_id).click()
    text = page.locator("main").inner_text()
    assert running.reasons[request_id] in text
    assert re.search(r"Score 0\.\d{4}, threshold 0\.\d{4}: ", text)
    for part in ("Trace", "Other candidates: ", "Sent to cluster vllm-", "encode", "ms in all"):
        assert part in text
    assert "Where is Lima?" not in text, "prompts are shown only with telemetry.log_prompts"


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_explain_says_what_the_server_does_and_counts_nothing(
    open_page: Callable[..., Any], running: Running, script: bool
) -> None:
    page = open_page("explain", java_script_enabled=script)
    prompt = f"{HARD} <img src=x onerror=alert(1)><script>alert(2)</script>"
    page.get_by_label("Prompt, or").fill(prompt)
    page.get_by_role("button", name="Explain").click()
    assert page.locator("#judged").inner_text() == prompt
    reason = page.locator("#report .lead").inner_text()
    assert (
        page.locator("#curl").inner_text().startswith("curl -s http://127.0.0.1:10000/v1/chat/completions ")
    )
    request_id = running.ask(prompt)
    assert reason.startswith(running.reasons[request_id])
    page = open_page("now")
    wait_for(lambda: total(page) >= running.count, 20, "the last request to be counted")
    assert total(page) == running.count, "explanations are not counted"


def test_the_page_can_be_worked_with_a_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page("now")
    focused = "document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(VIEWS["now"])
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "explain"
    width = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(width) == "3px", "the focus is visible"
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/explain")
    page.get_by_label("Prompt, or").focus()
    page.keyboard.type("Where is Lima?")
    while page.evaluate(focused) != "Explain":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#report")


def test_the_slider_of_the_frontier_shows_dollars_and_a_configuration_that_is_valid(
    open_page: Callable[..., Any],
) -> None:
    page = open_page("frontier")
    shown = page.locator("dt:text-is('per thousand requests') + dd")
    before = shown.inner_text()
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("#yaml:has-text('strong_share: 0.4')")
    assert float(shown.inner_text()[1:]) > float(before[1:])
    assert page.evaluate("document.activeElement.name") == "share", "the slider stays in hand"
    assert "Quality is not known" in page.locator("main").inner_text()
    kept = CONFIG_PATH.read_text().partition("\nstrategies:")[0]
    pasted = "\n".join([kept, page.locator("#yaml").inner_text(), "..."])
    page.goto(VIEWS["config"])
    page.get_by_label("or paste one").fill(pasted)
    page.get_by_role("button", name="Check the text").click()
    assert "strategies.pair.strong_share" in page.locator("#checked").inner_text()


def test_what_is_wrong_with_a_new_file_is_told_and_nothing_changes(
    open_page: Callable[..., Any], running: Running
) -> None:
    page = open_page("config")
    page.get_by_label("or paste one").fill(
        CONFIG_PATH.read_text().replace("default_pool: large", "default_pool: larg")
    )
    page.get_by_role("button", name="Check the text").click()
    assert re.search(
        r"pasted:\d+:\d+: default_pool: there is no pool 'larg'", page.locator("#checked").inner_text()
    )
    assert json.loads(running.gateway.sidecars[0].read_admin("/config")[1])["generation"] == 1


def test_pools_show_their_health_and_load(open_page: Callable[..., Any]) -> None:
    page = open_page("pools")
    row = page.locator("tr:has(th:text-is('small'))")
    assert "serving" in row.inner_text()
    assert "0 running" in row.inner_text()


def test_the_pictures_of_the_docs_are_small(open_page: Callable[..., Any], running: Running) -> None:
    """With SEMROUTE_SCREENSHOTS=1 they are taken; without, those in docs/ are checked."""
    request_id = running.ask("Explain how Raft keeps its log consistent when a leader fails.")
    shots: dict[str, tuple[str, str, dict[str, Any]]] = {
        "now": ("now", "", {}),
        "decision": ("decisions", f"?id={request_id}", {}),
        "explain": ("explain", "", {"color_scheme": "dark"}),
        "frontier": ("frontier", "", {}),
        "phone": ("now", "", {"color_scheme": "dark", "viewport": PHONE}),
    }
    for name, (view, query, options) in shots.items():
        path = DOCS / f"page-{name}.png"
        if SCREENSHOTS:
            page = open_page(view, query, **{"viewport": {"width": 900, "height": 760}, **options})
            if view == "explain":
                page.get_by_label("Prompt, or").fill(HARD)
                page.get_by_role("button", name="Explain").click()
                page.locator("#report").scroll_into_view_if_needed()
            page.screenshot(path=path)
        assert 5_000 < path.stat().st_size < SCREENSHOT_BYTES_MAX, name


def test_drift_is_shown_with_its_limit_and_the_topics_that_moved(chromium: Any, tmp_path: Path) -> None:
    asked = [each["body"].get("messages", [{"content": None}])[-1]["content"] for each in client.prompts()]
    before = [text for text in asked if isinstance(text, str)][:20]
    proofs = [f"Integrate x^{n} sin(x) from 0 to pi, and prove every step." for n in range(2, 22)]
    sidecar, background = Measured(tmp_path / "s", server__deadline_ms="2000"), Background()

    async def send(texts: list[str]) -> None:
        """Twice the window, so that all of it is of these texts, each of them equally often."""
        requests = [load.exchange(load.chat("auto", text)) for text in texts]
        async with connect(sidecar.sockets[0]) as envoy:
            await envoy.closed(requests * (2 * BLOCK * BLOCKS // len(texts)), 4)

    def shown() -> str:
        page = chromium.new_page(java_script_enabled=False, viewport=PHONE)
        page.goto(f"http://{sidecar.admin}/")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.evaluate(CONTRASTS) == []
        found = str(page.locator("main").inner_text())
        page.close()
        return found

    try:
        assert f"0 texts so far. The first {BLOCK * BLOCKS:,} are" in shown()
        background.run(send(before))
        calm = shown()
        assert "The texts have changed" not in calm
        for measure in ("topics", "difficulty", "unfamiliar texts"):
            assert re.search(rf"^{measure}\t0\.\d\d\t{LARGE}\tas before\t\w+", calm, re.M), measure
        assert re.search(r"^content\t0\.\d\d\t–\t–\t\w+", calm, re.M), "no limit is known"
        assert "Topics that moved" not in calm
        background.run(send(proofs))
        changed = shown()
        assert "The texts have changed since the start of the process." in changed
        assert re.search(rf"^topics\t\d+\.\d\d\t{LARGE}\tchanged\t\w+", changed, re.M)
        assert re.search(r"^Topics that moved most, .*: .*math \d+\.\d% → 100\.0%", changed, re.M)
    finally:
        sidecar.stop()
        background.close()
