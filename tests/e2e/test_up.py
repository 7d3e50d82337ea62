"""`semroute up` and `semroute go` in front of two simulated pools: observe, route a share, keep edits."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway import Background, wait_for
from ruamel.yaml import YAML
from semroute_demo.pool import Pool
from semroute_demo.process import HTTP
from started import FAST, Up, run

from semroute_extproc.cli import envoy_check
from semroute_extproc.config import source

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
UNUSUAL = [
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "?"}]}]},
    ),
    ("/v1/embeddings", {"input": "hello"}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
]


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Pool]]:
    background = Background()
    running = [
        Pool("small", ("org/Tiny-8B-Instruct",), FAST),
        Pool("large", ("org/Huge-70B-Instruct", "auto"), FAST),
    ]
    for pool in running:
        background.run(pool.start())
    yield running
    for pool in running:
        background.run(pool.stop())
    background.close()


@pytest.fixture
def start(tmp_path: Path, pools: list[Pool]) -> Iterator[Callable[[], Up]]:
    running: list[Up] = []

    def make() -> Up:
        running.append(Up(tmp_path, *(f"http://127.0.0.1:{pool.port}" for pool in pools)))
        return running[-1]

    yield make
    for each in running:
        each.stop()


def test_up_observes_go_routes_a_share_and_a_second_up_keeps_edits(
    start: Callable[[], Up], tmp_path: Path
) -> None:
    up = start()
    assert "Stronger: org/Huge-70B-Instruct (70 billion parameters, by its name)." in up.printed
    assert "Prices are guesses of 20" in up.printed
    assert max(map(len, up.printed.replace(str(tmp_path), "").splitlines())) <= 80
    config = source.load(tmp_path / "semroute.yaml", {}).config
    bootstrap = YAML().load((tmp_path / "envoy.yaml").read_text())
    assert envoy_check.check([bootstrap], config) == []

    # Observed: every request goes where it went.
    for _ in range(5):
        assert up.answered_by("org/Huge-70B-Instruct") == "large"
        assert up.answered_by("auto") == "large"
        assert up.answered_by("org/Tiny-8B-Instruct") == "small"
        assert (
            up.answered_by("org/Tiny-8B-Instruct", "Prove that there are infinitely many primes.") == "small"
        )
    # Whatever it needs: the server itself says what it cannot do.
    for path, body in UNUSUAL:
        answer = HTTP.post(
            f"http://127.0.0.1:{up.port}{path}", json={"model": "org/Huge-70B-Instruct", **body}
        )
        assert (answer.status_code, answer.headers["x-sim-pool"]) == (200, "large")
    wait_for(lambda: "of the observed ones" in up.printed, 40, "the report of what would be saved")
    counted = re.compile(r"1[0-9] observed\.\nCounted .*\nThey cost .*\ntiny-8b-instruct would have")
    wait_for(lambda: counted.search(up.printed) is not None, 40, "all ten to be observed")
    assert "0 routed" in up.printed

    # A share is routed.
    done = run("go", "--share", "0.5", "--dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (
        0,
        "50% of the requests are routed; the others go where they went.\n"
        "Requests that name org/Tiny-8B-Instruct stay as they are.\n",
    )
    text = (tmp_path / "semroute.yaml").read_text()
    assert text.count("canary: &live {routed: 0.5}\n") == 1

    def both() -> bool:
        return {up.answered_by("org/Huge-70B-Instruct") for _ in range(20)} == {"small", "large"}

    wait_for(both, 40, "a share of the strong model's requests at the weak one")
    assert {up.answered_by("org/Tiny-8B-Instruct") for _ in range(5)} == {"small"}

    # All of it, and nothing again.
    run("go", "--share", "1", "--dir", str(tmp_path))
    wait_for(
        lambda: [up.answered_by("auto") for _ in range(8)] == ["small"] * 8, 40, "everything to be routed"
    )
    run("go", "--share", "0", "--dir", str(tmp_path))
    wait_for(lambda: [up.answered_by("auto") for _ in range(8)] == ["large"] * 8, 40, "nothing to be routed")
    again = run("up", "http://127.0.0.1:1", "--dir", str(tmp_path))
    assert again.returncode != 0
    up.stop()

    # A second run keeps what was changed.
    edited = (tmp_path / "semroute.yaml").read_text().replace("strong_share: 0.3", "strong_share: 0.2")
    (tmp_path / "semroute.yaml").write_text(edited)
    second = start()
    assert "kept semroute.yaml: it was edited" in second.printed
    assert (tmp_path / "semroute.yaml").read_text() == edited
    assert second.answered_by("org/Huge-70B-Instruct") == "large"


class TestRefusals:
    @pytest.fixture
    def urls(self, pools: list[Pool]) -> list[str]:
        return [f"http://127.0.0.1:{pool.port}" for pool in pools]

    def refused(self, folder: Path, *arguments: str) -> str:
        done = run("up", *arguments, "--dir", str(folder))
        assert done.returncode == 69, done.stderr
        assert not (folder / "semroute.yaml").exists()
        return done.stderr

    def test_a_server_that_does_not_answer(self, tmp_path: Path, urls: list[str]) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            text = self.refused(tmp_path, urls[0], url)
        assert f"{url} does not answer" in text
        assert "is vLLM running?" in text

    def test_one_model_is_not_enough(self, tmp_path: Path, urls: list[str]) -> None:
        text = self.refused(tmp_path, urls[0], urls[0])
        assert "only one model, org/Tiny-8B-Instruct: give servers with two different models" in text

    def test_a_stronger_model_that_no_server_has(self, tmp_path: Path, urls: list[str]) -> None:
        assert "--strong gpt: no server has this model" in self.refused(tmp_path, *urls, "--strong", "gpt")

    def test_a_key_that_is_not_in_the_environment(self, tmp_path: Path, urls: list[str]) -> None:
        assert "the environment has no NO_SUCH_KEY" in self.refused(
            tmp_path, *urls, "--api-key-env", "NO_SUCH_KEY"
        )

    def test_an_address_that_is_none(self, tmp_path: Path) -> None:
        assert "give an address such as http://host:8000" in self.refused(tmp_path, "https://host", "x")

    def test_go_without_up(self, tmp_path: Path) -> None:
        (tmp_path / "semroute.yaml").write_text("pools: {a: {cluster: c, model: m}}\ndefault_pool: a\n")
        done = run("go", "--dir", str(tmp_path))
        assert done.returncode == 65
        assert "no line `canary: &live {}`, as `semroute up` writes it" in done.stderr
