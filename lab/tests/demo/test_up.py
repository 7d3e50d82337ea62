"""The files that `semroute up` writes and keeps, what `semroute go` changes, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from semroute_demo import up
from semroute_demo.servers import Model

from semroute_extproc.config import models, source
from semroute_extproc.errors import EndpointError
from semroute_extproc.telemetry.admin import AdminServer, Page

SMALL = Model(
    "tiny-8b", "org/Tiny-8B", ("http://10.0.0.1:8000", "http://10.0.0.2:8000"), ("chat",), 32_768, True
)
LARGE = Model("huge-70b", "org/Huge-70B", ("http://10.0.0.3:8000",), (), None, False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the configuration of two models."""
    up._replace(tmp_path / up.CONFIG, up._configuration(tmp_path, [SMALL, LARGE], SMALL, LARGE))
    return tmp_path


class TestConfiguration:
    def test_every_request_goes_where_it_went_and_is_shadowed(self, folder: Path) -> None:
        config = source.load(folder / up.CONFIG, {}).config
        observe = config.policies["observe"]
        assert (observe.otherwise.pool, observe.shadow, observe.shadow_share) == (
            "huge-70b",
            ("routed",),
            1.0,
        )
        assert config.models["auto"].policy == config.pools["huge-70b"].policy == "observe"
        assert config.models["auto"].canary == config.pools["huge-70b"].canary == {}
        assert config.pools["tiny-8b"].policy is None, "a request that names the weaker model is not judged"
        assert config.default_pool == "huge-70b"

    def test_pools_have_what_the_servers_said(self, folder: Path) -> None:
        pools = source.load(folder / up.CONFIG, {}).config.pools
        small = pools["tiny-8b"]
        assert (small.cluster, small.endpoints, small.aliases) == ("tiny-8b", SMALL.endpoints, ("chat",))
        assert (small.context, small.metrics) == (32_768, "http://10.0.0.1:8000/metrics")
        assert small.price is not None
        assert pools["huge-70b"].metrics is None

    def test_the_stronger_pool_refuses_nothing_that_its_server_might_do(self, folder: Path) -> None:
        large = source.load(folder / up.CONFIG, {}).config.pools["huge-70b"]
        assert large.images
        assert large.audio
        assert large.video
        assert large.files
        every = models.Config.model_fields["pools"].annotation.__args__[1].model_fields["apis"].annotation
        assert {*large.apis} == {name for part in every.__args__[0].__args__ for name in _names(part)}


def _names(literal: object) -> tuple[str, ...]:
    inner = getattr(literal, "__args__", None)
    return tuple(name for each in inner for name in _names(each)) if inner else (str(literal),)


class TestKeep:
    def test_a_file_is_written_again_only_while_nobody_has_edited_it(self, tmp_path: Path) -> None:
        said: list[str] = []
        path = tmp_path / "envoy.yaml"
        for text in ("one\n", "two\n"):
            up._keep(said.append, path, text)
            assert path.read_text() == text
        path.write_text("mine\n")
        up._keep(said.append, path, "three\n")
        assert path.read_text() == "mine\n"
        assert said == ["wrote envoy.yaml", "wrote envoy.yaml", "kept envoy.yaml: it was edited"]

    def test_a_file_that_was_there_before_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "semroute.yaml").write_text("mine\n")
        up._keep(lambda _: None, tmp_path / "semroute.yaml", "ours\n")
        assert (tmp_path / "semroute.yaml").read_text() == "mine\n"


class TestGo:
    def test_one_line_changes_and_nothing_else(self, folder: Path) -> None:
        before = (folder / up.CONFIG).read_text().replace("strong_share: 0.3", "strong_share:   0.4")
        (folder / up.CONFIG).write_text(before)
        done = CliRunner().invoke(up.go, ["--share", "0.25", "--dir", str(folder)])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("25% of the requests are routed; the others go where they went.\n")
        after = (folder / up.CONFIG).read_text()
        assert after == before.replace("&live {}", "&live {routed: 0.25}")
        config = source.load(folder / up.CONFIG, {}).config
        assert config.models["auto"].canary == config.pools["huge-70b"].canary == {"routed": 0.25}
        CliRunner().invoke(up.go, ["--share", "0", "--dir", str(folder)])
        assert (folder / up.CONFIG).read_text() == before

    @pytest.mark.parametrize("share", ["1.5", "-0.1", "x"])
    def test_a_share_is_between_none_and_all(self, folder: Path, share: str) -> None:
        assert CliRunner().invoke(up.go, ["--share", share, "--dir", str(folder)]).exit_code == 2

    def test_without_a_file_the_error_names_it(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(up.go, ["--dir", str(tmp_path)])
        assert (done.exit_code, "semroute.yaml" in done.stderr) == (78, True)


class TestChoice:
    def test_one_model_is_not_enough(self) -> None:
        with pytest.raises(EndpointError, match="only one model, org/Tiny-8B"):
            up._choose([SMALL], "")

    def test_without_a_terminal_the_stronger_one_must_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
        unknown = [Model(name, name, ("http://h:1",), (), None, False) for name in ("a", "b")]
        with pytest.raises(EndpointError, match=r"which model is stronger\? add --strong b"):
            up._choose(unknown, "")


class TestReport:
    @pytest.fixture
    def report(self, folder: Path) -> Iterator[Callable[[str], str]]:
        pages = [b""]
        server = AdminServer("127.0.0.1:0", {"/metrics": lambda: Page(200, "text/plain", pages[0])})

        def of(page: str) -> str:
            pages[0] = page.encode()
            environment = {"SEMROUTE__ADMIN__LISTEN": f"127.0.0.1:{server.port}"}
            return up.report(source.load(folder / up.CONFIG, environment).config)

        yield of
        server.close()

    SHADOW = 'policy="observe",shadow="routed",agreement="x"'
    DECIDED = (
        "# TYPE semroute_decisions_total counter\n"
        'semroute_decisions_total{strategy=""} 90\nsemroute_decisions_total{strategy="pair"} 10\n'
        "# TYPE semroute_shadow_decisions_total counter\n"
        f'semroute_shadow_decisions_total{{{SHADOW},pool="tiny-8b"}} 30\n'
        f'semroute_shadow_decisions_total{{{SHADOW},pool="huge-70b"}} 10\n'
    )
    COUNTED = (
        "# TYPE semroute_answers_total counter\n"
        'semroute_answers_total{pool="huge-70b"} 60\nsemroute_answers_total{pool="tiny-8b"} 40\n'
        "# TYPE semroute_tokens_total counter\n"
        'semroute_tokens_total{pool="huge-70b",type="input"} 6000000\n'
        'semroute_tokens_total{pool="huge-70b",type="output"} 3000000\n'
        'semroute_tokens_total{pool="tiny-8b",type="output"} 1000000\n'
        "# TYPE semroute_dollars_total counter\n"
        'semroute_dollars_total{pool="huge-70b"} 4.8\nsemroute_dollars_total{pool="tiny-8b"} 0.15\n'
        "# TYPE semroute_baseline_dollars_total counter\n"
        'semroute_baseline_dollars_total{pool="huge-70b"} 4.8\n'
        'semroute_baseline_dollars_total{pool="tiny-8b"} 0.8\n'
    )

    def test_it_says_what_the_answers_cost_and_what_was_and_would_be_saved(
        self, report: Callable[[str], str]
    ) -> None:
        # 30 of 60 answers, with half of 6 and 3 million tokens, from $0.40 and $0.80 to $0.05 and $0.15.
        assert report(self.DECIDED + self.COUNTED) == (
            "100 requests, 10 routed, 40 observed.\n"
            "Counted in the answers: 6,000,000 tokens in, 4,000,000 out.\n"
            "They cost $4.95; routing has saved $0.65.\n"
            "tiny-8b would have answered 75% of the observed ones,\n"
            "and saved $2.02 of this, if they are of mean size."
        )

    def test_without_counted_answers_it_names_no_dollars(self, report: Callable[[str], str]) -> None:
        assert report(self.DECIDED) == (
            "100 requests, 10 routed, 40 observed.\ntiny-8b would have answered 75% of the observed ones."
        )

    def test_dollars_of_a_few_requests_are_readable(self, report: Callable[[str], str]) -> None:
        few = self.COUNTED.replace("4.8\n", "0.000016\n").replace("0.15\n", "0\n").replace("0.8\n", "0\n")
        assert "They cost $0.000016; routing has saved $0." in report(few)

    def test_before_the_first_request_it_says_so(self, report: Callable[[str], str]) -> None:
        assert report("") == "0 requests, 0 routed, 0 observed."

    def test_a_sidecar_that_is_gone_is_reported(self, folder: Path) -> None:
        config = source.load(folder / up.CONFIG, {"SEMROUTE__ADMIN__LISTEN": "127.0.0.1:1"}).config
        assert up.report(config).startswith("the sidecar does not answer")


def test_a_wait_is_reported_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "TICK_SECONDS", 0.01)
    said: list[str] = []
    with up._progress(said.append, "starting Envoy"):
        while len(said) < 3:
            pass
    assert said[:2] == ["starting Envoy ...", "starting Envoy: 0 s"]
    assert json.dumps(said).count("starting Envoy") == len(said)
