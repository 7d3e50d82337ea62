"""The command line, as scripts use it."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from semroute_extproc import cli
from semroute_extproc.cli import commands, main, score
from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.encoder import bundle

EXAMPLE = Path(cli.__file__).parent / "example.yaml"
ROOT = Path(__file__).parents[3]
ENVOY = ROOT / "envoy" / "envoy.yaml"


def run(*arguments: str, stdin: bytes | str = "", env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin, env=env)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def explain(*arguments: str, **options: Any) -> dict[str, Any]:
    result = run("explain", "--config", str(EXAMPLE), "--json", *arguments, **options)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_every_command_says_what_it_is_for() -> None:
    result = run("--help")
    names = "serve demo explain score check example schema dump-config calibrate fit train eval"
    for name in names.split():
        assert f"\n  {name}" in result.stdout
        assert len(run(name, "--help").stdout.splitlines()) >= 3


@pytest.mark.parametrize("command", [[], *([name] for name in [*main.commands, *commands.LAB])])
def test_the_help_fits_eighty_columns(command: list[str]) -> None:
    shown = CliRunner().invoke(main, [*command, "--help"], terminal_width=80).stdout
    assert shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_the_help_imports_no_command() -> None:
    heavy = {"numpy", "grpc", "torch", "sklearn", "matplotlib", "semroute_demo"}
    code = "import sys; from semroute_extproc.cli import main; main(['--help'], standalone_mode=False); "
    code += f"print(sorted({heavy} & {{*sys.modules}}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("[]\n")
    assert "Measure what a decision costs" in shown


def test_a_command_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: Any) -> importlib.metadata.EntryPoints:
        return importlib.metadata.EntryPoints()

    monkeypatch.setattr(importlib.metadata, "entry_points", none)
    shown = " ".join(run("--help").stdout.split())
    extras = {"demo": "demo", "bench": "bench"} | dict.fromkeys(["train", "bundle", "eval"], "train")
    for name, extra in (extras | dict.fromkeys(["fit", "calibrate", "profile"], "fit")).items():
        install = f"pip install 'semroute-lab[{extra}]'"
        assert f"{name} (not installed: {install})" in shown
        result = run(name, "--data", "x")
        assert (result.exit_code, result.stderr) == (69, f"{name} is not installed: {install}\n")


def test_every_extra_in_a_message_is_one_of_the_lab() -> None:
    lab = tomllib.loads((ROOT / "lab" / "pyproject.toml").read_text())["project"]
    assert {extra for extra, _ in commands.LAB.values()} <= set(lab["optional-dependencies"])
    assert set(commands.LAB) == set(lab["entry-points"][commands.PLUGINS])


@pytest.mark.parametrize(("package", "extra"), [("sklearn", "fit"), ("transformers", "bartscore")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    """It may be missed when the command is imported, or when it runs."""

    def fail() -> click.Command:
        raise ModuleNotFoundError(name=package)

    for load in (fail, lambda: click.Command("fit", callback=exit_statuses(fail))):
        plugins = [SimpleNamespace(load=load)]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda plugins=plugins, **_: plugins)
        result = run("fit")
        told = f"the Python package {package!r} is missing: pip install 'semroute-lab[{extra}]'\n"
        assert (result.exit_code, result.stderr) == (69, told)


def test_a_socket_that_cannot_be_had_is_status_69() -> None:
    environment = {**os.environ, "SEMROUTE__SERVER__LISTEN": "unix:/no/such/w0.sock"}
    command = [sys.executable, "-m", "semroute_extproc", "serve", "-c", str(EXAMPLE)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 69, ended.stderr
    assert "cannot listen on unix:/no/such/w0.sock: there is no folder /no/such" in ended.stderr


class TestScore:
    def test_lines_come_back_in_order_with_every_signal(self) -> None:
        texts = ["What is photosynthesis?", "Prove Fermat's little theorem.", "hi"]
        result = run("score", stdin="\n".join(json.dumps({"text": text}) for text in texts))
        assert result.exit_code == 0
        scored = lines(result)
        assert len(scored) == 3
        for line in scored:
            assert {"domain", "difficulty", "unknown", "tokens", "truncated", "language"} <= set(line)
            assert line["domain"]["label"] == max(line["domain"]["probs"], key=line["domain"]["probs"].get)
            assert 0.0 <= line["difficulty"] <= 1.0
        assert scored[1]["domain"]["label"] == "math"
        assert scored[1]["difficulty"] > scored[2]["difficulty"]

    def test_a_body_is_read_as_the_server_would_read_it(self) -> None:
        question = "What are the elements of negligence in tort law?"
        turns = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": question}]
        bodies: list[dict[str, Any]] = [
            {"messages": turns},
            {"prompt": question},
            {"input": question},
            {"system": "x", "max_tokens": 1, "messages": turns[1:]},
        ]
        result = run("score", stdin="\n".join(json.dumps({"body": body}) for body in bodies))
        scored = lines(result)
        assert {line["domain"]["label"] for line in scored} == {"law"}
        assert len({line["difficulty"] for line in scored}) == 1

    def test_a_bad_line_is_an_error_in_its_place_and_the_status_is_one(self) -> None:
        good = json.dumps({"text": "hello"})
        bad = ["not json", "[]", "{}", '{"text": 7}', '{"text": "  "}', '{"body": []}']
        bad += ['{"body": {"messages": 1}}', ""]
        result = run("score", stdin="\n".join([good, *bad, good]) + "\n")
        assert result.exit_code == 1
        scored = lines(result)
        assert ["error" in line for line in scored] == [False, *[True] * len(bad), False]
        assert "8 bad lines" in result.stderr

    def test_bytes_that_are_not_text_are_an_error_in_their_place(self) -> None:
        result = run("score", stdin=b'\xff\xfe\n{"text": "hello"}\n')
        assert ["error" in line for line in lines(result)] == [True, False]

    def test_the_embedding_is_given_when_asked_for(self) -> None:
        [line] = lines(run("score", "--embedding", stdin='{"text": "hello"}'))
        assert len(line["embedding"]) == 384

    def test_no_lines_give_no_lines(self) -> None:
        result = run("score", stdin="")
        assert (result.exit_code, result.stdout) == (0, "")

    def test_a_bundle_that_is_not_there_is_status_78(self, tmp_path: Path) -> None:
        result = run("score", "--bundle", str(tmp_path), stdin="{}")
        assert result.exit_code == 78
        assert "bundle.json" in result.stderr

    def test_no_more_of_a_long_line_is_held_than_is_read(self) -> None:
        stream = io.BytesIO(b"short\n" + b"x" * 95 + b"\n" + b"y" * 11 + b"\nlast")
        read = list(score.read_lines(stream, 10))
        assert [len(line) for line in read] == [6, 11, 11, 4]
        with pytest.raises(ValueError, match="longer than 10 bytes"):
            score.read_line(read[1], 10)


class TestExplain:
    def test_the_decision_has_all_its_parts(self) -> None:
        report = explain("--text", "Prove that there are infinitely many primes congruent to 3 modulo 4.")
        assert (report["pool"], report["cluster"]) == ("large", "vllm-large")
        assert report["model"] == "deepseek-ai/DeepSeek-V3.2"
        assert report["signals"]["domain"]["label"] == "math"
        assert report["edits"]["headers"]["set"]["x-semroute-cluster"] == "vllm-large-or-next"
        assert report["others"] == ["small"], "who answers if the pool fails"
        assert report["edits"]["body"]["changed"]["model"] == "deepseek-ai/DeepSeek-V3.2"
        assert {"parse", "policy", "encode", "edit"} == set(report["stages_ms"])
        for key in ("reasoning", "reason", "rule", "trace"):
            assert key in report

    def test_a_header_decides(self) -> None:
        report = explain("--text", "Prove the four color theorem.", "-H", "X-Tier: internal")
        assert (report["pool"], report["rule"], report["signals"]) == ("small", "internal", None)

    def test_quality_is_a_header_too(self) -> None:
        text = "What is the derivative of x squared?"
        assert explain("--text", text, "--header", "x-semroute-quality: 1")["pool"] == "large"
        assert explain("--text", text, "--header", "x-semroute-quality:0")["pool"] == "small"

    def test_what_the_client_sends_is_not_markup(self) -> None:
        body = '{"model": "auto", "messages": [], "input": "[/b]"}'
        arguments = ("explain", "-c", str(EXAMPLE), "--header", "content-encoding: [/b]", "--body", "-")
        result = run(*arguments, stdin=body)
        assert result.exit_code == 0, result.output
        assert "[/b]" in result.stdout

    def test_a_compressed_body_shows_only_what_was_changed(self) -> None:
        body = gzip.compress(b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}')
        report = explain("--body", "-", "--header", "content-encoding: gzip", stdin=body)
        assert set(report["edits"]["body"]["changed"]) <= {"model", "chat_template_kwargs"}

    def test_members_that_only_pass_through_are_not_read(self) -> None:
        digits = "1" * 5_000
        body = f'{{"model": "auto", "messages": [{{"role": "user", "content": "hi"}}], "seed": {digits}}}'
        assert explain("--body", "-", stdin=body)["outcome"] == "routed"

    def test_a_body_from_standard_input_and_another_path(self) -> None:
        body = json.dumps({"model": "auto", "input": "hello", "max_output_tokens": 10})
        report = explain("--body", "-", "--path", "/v1/responses", stdin=body)
        assert report["request"]["api"] == "responses"
        assert report["outcome"] == "routed"

    def test_a_member_that_only_loses_whitespace_is_not_shown_as_changed(self, tmp_path: Path) -> None:
        file = tmp_path / "semroute.yaml"
        settings = yaml.safe_load(EXAMPLE.read_text())
        bands = [{"below": 1.0, "effort": "off"}, {"effort": "off"}]
        target = {"pool": "small", "reasoning": {"bands": bands, "override": True}}
        settings["policies"]["main"] = {"otherwise": target}
        file.write_text(yaml.safe_dump(settings))
        body = '{"model": "auto", "messages": [{"role": "user", "content": "hi"}], '
        body += '"chat_template_kwargs": {"enable_thinking":  false}}'
        result = run("explain", "-c", str(file), "--json", "--body", "-", stdin=body)
        changed = json.loads(result.stdout)["edits"]["body"]["changed"]
        assert changed == {"model": settings["pools"]["small"]["model"]}

    def test_what_passes_through_is_explained(self) -> None:
        assert explain("--body", "-", stdin="nonsense")["cause"] == "not_json"
        assert explain("--text", "x", "--path", "/v1/unknown")["cause"] == "unknown_path"
        assert explain("--text", "x", "--model", "Qwen/Qwen3-8B")["outcome"] == "named"

    def test_the_judged_text_and_what_was_left_out_are_shown(self) -> None:
        report = explain("--text", "<notes>long</notes>\nWhy is the sky blue?")
        assert report["text"] == "Why is the sky blue?"
        assert report["left_out"] == [{"kind": "block", "characters": 20}]
        assert report["housekeeping"] is None

    def test_a_prompt_from_standard_input_and_a_header_as_curl_writes_it(self) -> None:
        report = explain("--text", "-", "-H", "X-Tier:  internal", stdin="Prove that 2 is even.\n")
        assert (report["text"].strip(), report["rule"]) == ("Prove that 2 is even.", "internal")
        assert explain("--text", "x", "--header", "X-Tier:internal")["rule"] == "internal"

    def test_people_get_a_table(self) -> None:
        text = "Name this chat in six words.\n<notes>long</notes>\nUser: hello\nAssistant: Hello!"
        shown = run("explain", "--config", str(EXAMPLE), "--text", text).stdout
        assert all(len(line) <= 80 for line in shown.splitlines())
        table = " ".join(shown.split())
        for row in (
            "set header x-semroute-cluster",
            "housekeeping title",
            "judged Name this",
            "left out block: ",
        ):
            assert row in table

    @pytest.mark.parametrize(
        "arguments", [[], ["--text", "x", "--body", "-"], ["--text", "x", "--header", "no"]]
    )
    def test_wrong_usage_is_status_two(self, arguments: list[str]) -> None:
        assert run("explain", "--config", str(EXAMPLE), *arguments).exit_code == 2


class TestConfiguration:
    def test_what_is_dumped_is_read_back_as_the_same(self, tmp_path: Path) -> None:
        """A null is a value: without its line the admin port would be open again."""
        changed = {"SEMROUTE__ADMIN__LISTEN": "null", "SEMROUTE__SERVER__DEADLINE_MS": "42"}
        dumped = run("dump-config", "-c", str(EXAMPLE), env=changed).stdout
        (tmp_path / "dumped.yaml").write_text(dumped)
        assert "127.0.0.1:9090" not in dumped
        assert "deadline_ms: 42" in dumped
        assert run("dump-config", "-c", str(tmp_path / "dumped.yaml")).stdout == dumped

    def test_semroute_yaml_in_the_current_folder_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for command in ("check", "dump-config", "serve"):
            assert "there is no semroute.yaml here" in run(command).stderr
        Path("semroute.yaml").write_text(EXAMPLE.read_text())
        assert run("check").stdout.startswith("semroute.yaml: ok")
        assert run("dump-config").exit_code == 0

    def test_the_example_is_right(self, tmp_path: Path) -> None:
        file = tmp_path / "semroute.yaml"
        file.write_text(run("example").stdout)
        result = run("check", str(file))
        assert result.exit_code == 0
        assert "ok" in result.stdout

    @pytest.mark.parametrize(
        ("old", "new", "place"),
        [
            ("strong_share: 0.3", "strong_share: 3", ":strategies.pair.strong_share"),
            (
                "difficulty > 0.7",
                "dificulty > 0.7",
                "policies.main.rules.3.when: there is no fact 'dificulty'",
            ),
            ("default_pool: large", "default_pol: large", "did you mean 'default_pool'?"),
        ],
    )
    def test_an_error_is_status_78_and_a_line_with_its_place(
        self, tmp_path: Path, old: str, new: str, place: str
    ) -> None:
        file = tmp_path / "semroute.yaml"
        file.write_text(EXAMPLE.read_text().replace(old, new))
        for command in (["check", str(file)], ["serve", "--config", str(file)]):
            result = run(*command)
            assert result.exit_code == 78
            assert any(line.startswith(f"{file}:") for line in result.stderr.splitlines())
            assert place.lstrip(":") in result.stderr

    @pytest.mark.parametrize(
        ("added", "missing", "message"),
        [
            (
                "  asked: {kind: judge, weak: small, strong: large, url: 'http://judge:8000/v1', model: m, "
                "api_key_env: SEMROUTE_TEST_NO_KEY, threshold: 0.5}\n",
                "",
                "strategies.asked: the environment has no SEMROUTE_TEST_NO_KEY",
            ),
            (
                "controllers: {store: {url: 'valkey://host', key: 0123456789abcdef, replicas: 1}}\n",
                "redis",
                "semroute-extproc[valkey]",
            ),
            (
                "controllers: {store: {url: 'valkey://host/0?socket_timeout=soon', "
                "key: 0123456789abcdef, replicas: 1}}\n",
                "",
                "controllers.store.url: has an option that the library rejects",
            ),
            (
                "telemetry: {decision_log: {path: log, format: parquet}}\ncontrollers: {}\n",
                "semroute_extproc.telemetry.parquet_files",
                "telemetry.decision_log.format: parquet needs the extra: pip install",
            ),
            ("", "onnxruntime", "install semroute-extproc[cpu] or semroute-extproc[gpu]"),
        ],
        ids=["key", "valkey", "address", "parquet", "runtime"],
    )
    def test_what_would_keep_serve_from_starting_here_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: str, missing: str, message: str
    ) -> None:
        if missing:
            monkeypatch.setitem(sys.modules, missing, None)
        elif "valkey" in added:
            pytest.importorskip("redis", reason="needs the extra valkey")
        example = EXAMPLE.read_text()
        section = "strategies:\n" if added.startswith(" ") else "controllers:"
        assert section in example
        before, _, after = example.partition(section)
        text = before + section + added + after if added.startswith(" ") else f"{before}{added}...\n"
        file = tmp_path / "semroute.yaml"
        file.write_text(text)
        result = run("check", str(file))
        assert result.exit_code == 78, result.output
        assert message in result.stderr

    @pytest.mark.parametrize(
        ("old", "new", "note"),
        [
            (
                "weak: small, strong: large",
                "weak: large, strong: small",
                "strategies.pair.weak: by their prices large is more expensive than small",
            ),
            ('domain == "math"', 'domain == "maths"', "policies.main.rules.3.when: no bundle has the domain"),
            ("listen: unix:/run/semroute/", "listen: unix:/no/such/", "server.listen: the directory"),
        ],
    )
    def test_what_is_more_likely_a_slip_is_a_note_with_its_place(
        self, tmp_path: Path, old: str, new: str, note: str
    ) -> None:
        text = EXAMPLE.read_text().replace("unix:/run/semroute", f"unix:{tmp_path}")
        file = tmp_path / "semroute.yaml"
        file.write_text(text)
        assert not run("check", str(file)).stderr
        old = old.replace("/run/semroute", str(tmp_path))
        assert old in text
        file.write_text(text.replace(old, new))
        result = run("check", str(file))
        assert result.exit_code == 0
        assert " ".join(result.stderr.split()).startswith(f"note: {file}:")
        assert note in " ".join(result.stderr.split())

    def test_a_cluster_that_envoy_does_not_have_is_status_78_and_named(self, tmp_path: Path) -> None:
        assert run("check", str(EXAMPLE), "--envoy", str(ENVOY)).exit_code == 0
        file = tmp_path / "semroute.yaml"
        file.write_text(EXAMPLE.read_text().replace("cluster: vllm-small", "cluster: vllm-smal"))
        result = run("check", str(file), "--envoy", str(ENVOY))
        assert result.exit_code == 78
        assert "pools.small.cluster" in result.stderr
        text = " ".join(result.stderr.split())
        assert "there is no cluster 'vllm-smal' (did you mean 'vllm-small'?)" in text

    @pytest.mark.parametrize(
        ("version", "message"),
        [
            ("envoy  version: 0a1b/1.37.0/Clean/RELEASE/BoringSSL", ""),
            ("1.40.1", ""),
            ("2.0.0", ""),
            (
                "envoy  version: 0a1b/1.36.12/Clean/RELEASE/BoringSSL",
                "Envoy 1.36.12 is too old: 1.37 is the lowest",
            ),
            ("latest", "no version of Envoy in 'latest'"),
        ],
    )
    def test_an_envoy_that_is_too_old_is_status_78(self, version: str, message: str) -> None:
        result = run("check", str(EXAMPLE), "--envoy-version", version)
        assert result.exit_code == (78 if message else 0)
        assert message in result.stderr

    def test_a_cluster_that_hands_failures_back_is_needed_for_failover(self, tmp_path: Path) -> None:
        (tmp_path / "envoy.yaml").write_text(ENVOY.read_text().replace("vllm-small-or-next", "gone"))
        result = run("check", str(EXAMPLE), "--envoy", str(tmp_path / "envoy.yaml"))
        assert result.exit_code == 78
        assert "there is no cluster 'vllm-small-or-next'" in " ".join(result.stderr.split())

    def test_findings_name_file_and_line_and_fit_80_columns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = ENVOY.read_text().replace("message_timeout: 3s", "message_timeout: 0.1s")
        Path("envoy.yaml").write_text(text.replace("failure_mode_allow: true", "failure_mode_allow: false"))
        result = run("check", str(EXAMPLE), "--envoy", "envoy.yaml")
        assert result.exit_code == 78
        late = next(i for i, line in enumerate(text.splitlines(), 1) if "message_timeout: 0.1s" in line)
        assert f"\nenvoy.yaml:{late}: Envoy gives up before the sidecar's deadline" in result.stderr
        assert "note: envoy.yaml:" in result.stderr
        assert max(map(len, result.stderr.partition("note: envoy")[2].splitlines())) <= 80

    def test_what_is_dynamic_cannot_be_checked_and_a_note_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "envoy.yaml").write_text("dynamic_resources: {cds_config: {ads: {}}}\n")
        result = run("check", str(EXAMPLE), "--envoy", str(tmp_path / "envoy.yaml"))
        assert result.exit_code == 0
        assert "what is dynamic cannot be checked" in " ".join(result.stderr.split())

    @pytest.mark.parametrize(
        "text", ["a: 1\n", "static_resources: [1]\n", "- 1\n", "static_resources: {}\n", ""]
    )
    def test_a_file_that_is_no_bootstrap_is_status_78(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "envoy.yaml").write_text(text)
        result = run("check", str(EXAMPLE), "--envoy", str(tmp_path / "envoy.yaml"))
        assert result.exit_code == 78
        assert str(tmp_path / "envoy.yaml") in result.stderr

    def test_a_gpu_that_is_not_there_is_status_78(self, tmp_path: Path) -> None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime knows CUDA")
        result = run("check", str(EXAMPLE), env={"SEMROUTE__ENCODER__DEVICE": "cuda"})
        assert result.exit_code == 78
        assert "encoder.device: cuda was asked for" in result.stderr

    def test_a_tampered_bundle_is_status_78_and_named(self, tmp_path: Path) -> None:
        (tmp_path / "bundle.json").write_text((bundle.default_bundle() / "bundle.json").read_text())
        environment = {"SEMROUTE__ENCODER__BUNDLE": str(tmp_path)}
        result = run("check", str(EXAMPLE), env=environment)
        assert result.exit_code == 78
        assert str(tmp_path) in result.stderr

    def test_the_schema_knows_every_section(self) -> None:
        schema = json.loads(run("schema").stdout)
        assert {"pools", "policies", "strategies", "models"} <= set(schema["properties"])
        assert schema["additionalProperties"] is False
