"""The configuration file: what is read, and how errors are told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, SecretStr

from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.errors import ConfigError
from semroute_extproc.request.view import Api
from semroute_extproc.settings.base import Problem
from semroute_extproc.settings.policies import Reasoning
from semroute_extproc.settings.pools import ApiName

ROOT = Path(__file__).resolve().parents[3]
GOOD = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
models:
  auto: {policy: main}
policies:
  main:
    otherwise: {strategy: pair}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "semroute.yaml"


def problems(file: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_source.load(file, environment or {})
    return caught.value.problems


def test_a_good_file_is_read_with_its_defaults(file: Path) -> None:
    file.write_text(GOOD)
    config = config_source.load(file, {}).config
    assert config.pools["small"].cluster == "vllm-small"
    assert config.server.deadline_ms == 100


def test_an_unknown_key_is_shown_in_its_line_with_a_caret_and_a_hint(file: Path) -> None:
    [problem] = problems(file, GOOD.replace("strong_share", "strong_shre"))
    head, line, caret = problem.splitlines()
    assert head.startswith(f"{file}:11:55: strategies.pair.strong_shre: unknown setting")
    assert "did you mean 'strong_share'?" in head
    assert line[caret.index("^") :].startswith("strong_shre")


def test_an_undefined_name_is_told_together_with_every_other_problem(file: Path) -> None:
    text = GOOD.replace("default_pool: large", "default_pool: lage").replace("strong_share", "strong_shre")
    first, *_, second = problems(file, text)
    assert "default_pool: there is no pool 'lage' (did you mean 'large'?)" in first
    assert "strong_shre: unknown setting" in second


def test_an_unknown_key_like_no_setting_says_where_the_settings_are_listed(file: Path) -> None:
    [problem] = problems(file, f"{GOOD}encoder: {{unsure: 1}}\n")
    assert "encoder.unsure: unknown setting; `semroute schema` lists the settings\n" in problem


@pytest.mark.parametrize(
    ("store", "wrong"),
    [
        (
            "{url: 'redis://:s3cret-pw@host/0', key: s3cret-pw-0123456, replicas: 1, timeout_ms: 99}",
            "timeout_ms",
        ),
        ("{url: 'http://:s3cret-pw@host/0', key: s3cret-pw-0123456, replicas: 1}", "url"),
        ("{url: 'redis://:s3cret-pw@host/0', key: s3cret-pw, replicas: 1}", "key"),
    ],
)
def test_no_error_shows_a_secret(file: Path, store: str, wrong: str) -> None:
    [problem] = problems(file, f"{GOOD}controllers: {{store: {store}}}\n")
    head, line, caret = problem.splitlines()
    assert f"controllers.store.{wrong}: " in head
    assert line[caret.index("^") :].startswith(wrong)
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "misplaced",
    [
        "controllers: {store: {ur: 'redis://:s3cret-pw@host/0', key: s3cret-pw-0123456}}",
        "controllers: {store: {url: 'redis://:s3cret-pw@h/0', kye: s3cret-pw-0123456, x: 1}}",
        "controllers: {stor: {url: 'redis://:s3cret-pw@h/0', key: s3cret-pw-0123456}}",
        "controllers: {store: 'redis://:s3cret-pw@host/0', session: {ttl_seconds: -1}}",
        "controllers: {session: 'redis://:s3cret-pw@host/0'}",
        "controler: {store: {url: 'redis://:s3cret-pw@h/0', key: s3cret-pw-0123456}}",
        "controllers: {store: {'redis://:s3cret-pw@h/0', key: s3cret-pw-0123456}}",
        "key: s3cret-pw-0123456",
        'kye: "\\x733cret-pw s3cret-pw"',
        "kye:\n  deep: [{er: s3cret-pw}]",
        "admin: {token: s3cret-pw}",
        "admin: {tokn: s3cret-pw-0123456}",
        "admin: {token: s3cret-pw-0123456, listen: 9}",
        "telemetry: {otlp_endpoint: 'http://ann:s3cret-pw@host?x=s3cret-pw', log_level: loud}",
        # What the library says about the syntax quotes the file.
        "admin: {token: s3cret-pw-1, token: s3cret-pw-2}",
        "admin: {token: *s3cret-pw-0123456}",
        "admin: {token: !s3cret-pw x}",
        "admin: {token: 's3cret-pw}",
        "admin: {token: s3cret-pw: s3cret-pw}",
    ],
)
def test_no_error_shows_a_secret_with_a_wrong_key_or_at_a_wrong_place(file: Path, misplaced: str) -> None:
    for problem in problems(file, f"{GOOD}{misplaced}\n"):
        assert problem.startswith(str(file))
        assert "s3cret" not in problem


def test_every_secret_setting_is_one_that_no_error_shows() -> None:
    assert set(secret_settings(Config)) == {
        ("controllers", "store", "url"),
        ("controllers", "store", "key"),
        ("admin", "token"),
        ("server", "secret"),
        ("telemetry", "decision_log", "key"),
    }
    assert all(
        any(path[: len(prefix)] == prefix for prefix in config_source.SECRETS)
        for path in secret_settings(Config)
    )


def secret_settings(model: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of the settings of type SecretStr, in nested models too."""
    for name, field in model.model_fields.items():
        for each in (field.annotation, *get_args(field.annotation)):
            if each is SecretStr:
                yield (*path, name)
            elif isinstance(each, type) and issubclass(each, BaseModel):
                yield from secret_settings(each, (*path, name))


def test_no_dump_shows_the_password_or_the_query_of_a_url(file: Path) -> None:
    url = "http://ann:s3cret@host:8000/metrics?token=s3cret"
    text = GOOD.replace("model: org/small", f"model: org/small, metrics: '{url}'")
    file.write_text(f"{text}telemetry: {{otlp_endpoint: '{url}'}}\nadmin: {{token: s3cret-0123456789}}\n")
    loaded = config_source.load(file, {})
    assert loaded.config.pools["small"].metrics == url, "it is used as it is"
    for dump in (loaded.config.model_dump_json(), str(loaded.config.model_dump(mode="json"))):
        assert "s3cret" not in dump
        assert "@host:8000/metrics?" in dump


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (BOMB, ":5:"),
        (
            "a: &a {x: 1}\n"
            + BOMB.replace("[x,", "[*a,").replace("a: &a", "b0: &b0", 1).replace("*a,", "*b0,"),
            ":",
        ),
        ("a: &a [1, *a]\n", ":1:11: "),
        ("a: &a\n  <<: *a\n", ":2:7: "),
        ("a: " + "[" * 100_000 + "\n", ":1:6"),
        ("a: " + "{a: " * 100_000 + "\n", ":1:"),
        ("".join(" " * depth + "a:\n" for depth in range(1_000)), ":6"),
        ("a: " + "x" * 100_000 + "\n", ":1:4: a value of more than 32768 characters"),
        ("a:\n  {{b: {c: 1}}: 2}\n", ":2:4: a key must be text, not a mapping or a list"),
        ("a: {{ .Values.b }}\n", ":1:5: a key must be text, not a mapping or a list"),
        ("a: &b [1]\n*b : 2\n", ":2:1: a key must be text, not a mapping or a list"),
        ("%YAML 1.1\n---\na: " + "1:" * 50_000 + "1\n...\n", ":3:4: a value of more than"),
        ("a: [" + "0," * 50_000 + "0]\n", ":1:"),
        ("".join(f"a{number}: 1\n" for number in range(30_000)), ":100"),
        ("#" * 2_000_000 + "\n", ": more than 1048576 bytes"),
        ("a: 0x" + "f" * 30_000 + "\n", "a: unknown setting"),
        ("a: " + "9" * 30_000 + "\n", "not YAML"),
    ],
    ids=lambda value: value[:20] if value.startswith(":") else "",
)
def test_a_document_that_would_take_for_ever_is_refused_with_its_place(
    file: Path, text: str, place: str
) -> None:
    started = time.process_time()
    [*_, problem] = problems(file, text)
    assert problem.startswith(str(file))
    assert place in problem
    assert "cut off" not in problem
    assert len(problem) < 1_000
    assert time.process_time() - started < 20


def test_a_value_in_the_environment_is_no_bomb_either(file: Path) -> None:
    for problem in problems(file, GOOD, {"SEMROUTE__POLICIES": "{" + BOMB.replace("\n", ", ") + "}"}):
        assert problem.startswith("SEMROUTE__POLICIES (environment)")


def test_an_alias_may_repeat_a_value(file: Path) -> None:
    file.write_text(
        GOOD.replace("small: {", "small: &one {").replace("large: {cluster", "large: {<<: *one, cluster")
    )
    assert config_source.load(file, {}).config.pools["large"].model == "org/large"


def test_problems_have_a_bound(file: Path) -> None:
    text = GOOD + "".join(f"x{number}: 1\n" for number in range(1_000))
    assert len(problems(file, text)) == config_source.PROBLEMS_MAX


MARKED = f"# a comment\n---\n{GOOD}# the end\n...\n"


@pytest.mark.parametrize(
    "whole",
    [
        MARKED,
        (ROOT / "semroute_extproc" / "cli" / "example.yaml").read_text(),
        (ROOT / "lab" / "semroute_demo" / "semroute.yaml").read_text(),
    ],
    ids=["small", "example", "demo"],
)
def test_a_file_that_is_cut_off_anywhere_is_refused(file: Path, whole: str) -> None:
    """The mark of the beginning requires the mark of the end, so that every cut is found."""
    file.write_text(whole)
    assert config_source.load(file, {}).config.models
    accepted = [size for size in range(len(whole)) if not refused(file, whole[:size])]
    assert accepted == []


def refused(file: Path, text: str) -> bool:
    file.write_text(text)
    try:
        config_source.load(file, {})
    except ConfigError:
        return True
    return False


def test_without_the_marks_a_file_that_ends_within_a_line_is_refused(file: Path) -> None:
    assert refused(file, GOOD[:-1])
    assert not refused(file, GOOD)
    [problem] = problems(file, GOOD[:-1])
    assert problem == f"{file}:11: does not end with a line break: is the file cut off?"


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    with pytest.raises(ConfigError, match="not a regular file"):
        config_source.load(path, {})
    assert config_source.digest(path) == b""


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(file: Path, number: str) -> None:
    price = f"{{cluster: vllm-small, price: {{input: {number}, output: 1}},"
    [problem] = problems(file, GOOD.replace("{cluster: vllm-small,", price))
    assert "pools.small.price.input: input should be " in problem


def test_a_missing_setting_is_placed_at_what_lacks_it(file: Path) -> None:
    [problem] = problems(
        file, GOOD.replace("{cluster: vllm-small, model: org/small}", "{cluster: vllm-small}")
    )
    assert problem.startswith(f"{file}:2:3: pools.small.model: is required")


def test_every_problem_is_told_at_once(file: Path) -> None:
    text = GOOD.replace("cluster: vllm-small", "cluster: 'a b'").replace(
        "default_pool: large", "default_pool: 7"
    )
    assert len(problems(file, text)) == 2


def test_a_name_that_is_not_defined_is_shown_where_it_is_used(file: Path) -> None:
    [problem] = problems(file, GOOD.replace("weak: small", "weak: smal"))
    assert problem.startswith(
        f"{file}:11:27: strategies.pair.weak: there is no pool 'smal' (did you mean 'small'?)"
    )


@pytest.mark.parametrize(
    ("envelopes", "message"),
    [
        ("{ask: [ticket], context: [Ticket]}", "'ticket' is in both ask and context"),
        ("{ask: ['<ticket>']}", "text.envelopes.ask.0: string should match pattern"),
        (f"{{ask: [{', '.join(f't{number}' for number in range(65))}]}}", "at most 64 items"),
        ("{housekeeping: {mail: [sort]}}", "at least 8 characters"),
        ("{housekeeping: {'a b': [sort the mail]}}", "pattern"),
        ("{asks: [ticket]}", "did you mean 'ask'?"),
    ],
)
def test_an_envelope_that_cannot_be_used_is_refused(file: Path, envelopes: str, message: str) -> None:
    [problem] = problems(file, f"{GOOD}text: {{envelopes: {envelopes}}}\n")
    assert "text.envelopes" in problem
    assert message in problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("default_pool: large", "default_pool: huge", "there is no pool 'huge'"),
        ("policy: main", "policy: mian", "there is no policy 'mian' (did you mean 'main'?)"),
        ("strategy: pair", "strategy: pear", "there is no strategy 'pear'"),
        ("strategy: pair", "{}", "give exactly one of pool, strategy and deny"),
        ("strong_share: 0.3", "strong_share: 0.3, threshold: 0.4", "give exactly one of"),
        ("strong_share: 0.3", "strong_share: 1.3", "less than or equal to 1"),
        ("weak: small", "weak: large", "weak and strong are the same pool"),
        ("auto: {policy", "org/large: {policy", "is also a pool's model"),
        ("model: org/small}", "model: org/small, reasoning: qwen9}", "there is no reasoning family 'qwen9'"),
        ("kind: threshold", "kind: treshold", "kind"),
    ],
)
def test_what_does_not_fit_together_is_refused(file: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    new = new if new != "{}" else "reasoning: low"
    assert any(message in problem for problem in problems(file, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", ":1:"),
        ("a: 1\na: 2\n", ":2:1"),
        ("- 1\n", "expected a mapping"),
        ("\n", "expected a mapping"),
        ("\t\n", ":1:1"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_its_place(file: Path, text: str, message: str) -> None:
    assert message in problems(file, text)[0]


def test_bytes_that_are_not_utf_8_are_refused(file: Path) -> None:
    file.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        config_source.load(file, {})


def test_a_missing_file_is_told_by_name(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"semroute\.yaml: No such file"):
        config_source.load(file, {})


def test_the_environment_wins_over_the_file(file: Path) -> None:
    file.write_text(GOOD)
    environment = {
        "SEMROUTE__SERVER__DEADLINE_MS": "25",
        "SEMROUTE__POOLS__SMALL__CLUSTER": "other",
        "SEMROUTE__SERVER__LISTEN": "unix:/run/x.sock",
        "SEMROUTE_CONFIG": "not ours",
    }
    config = config_source.load(file, environment).config
    assert (config.server.deadline_ms, config.server.listen) == (25, "unix:/run/x.sock")
    assert config.pools["small"].cluster == "other"


def test_an_error_in_the_environment_names_the_variable(file: Path) -> None:
    [problem] = problems(file, GOOD, {"SEMROUTE__SERVER__DEADLINE_MS": "soon"})
    assert problem.startswith("SEMROUTE__SERVER__DEADLINE_MS (environment): server.deadline_ms:")


def test_off_is_an_effort(file: Path) -> None:
    file.write_text(GOOD.replace("{strategy: pair}", "{strategy: pair, reasoning: off}"))
    target = config_source.load(file, {}).config.policies["main"].otherwise
    assert target.reasoning == Reasoning(effort="none")


def test_equal_configurations_have_equal_digests(file: Path) -> None:
    file.write_text(GOOD)
    first = config_source.load(file, {}).sha256
    file.write_text("# a comment\n" + GOOD)
    assert config_source.load(file, {}).sha256 == first
    file.write_text(GOOD.replace("0.3", "0.4"))
    assert config_source.load(file, {}).sha256 != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("strategy: pair}", "strategy: pair, reasoning: [high]}", "policies.main.otherwise.reasoning: input"),
        ("strategy: pair}", "strategy: pair, reasoning: {a: b}}", "policies.main.otherwise.reasoning.a: "),
        ("default_pool: large", "default_pool: large\nadmin: {listen: nine}", "admin.listen: "),
        ("default_pool: large", "default_pool: large\nadmin: {listen: 'x:99999'}", "the port is above 65535"),
        ("default_pool: large", "default_pool: large\nserver: {listen: here}", "server.listen: "),
        ("default_pool: large", "default_pool: large\nx: " + "[" * 400 + "]" * 400, "nested too deeply"),
    ],
)
def test_what_no_start_could_use_is_told_and_not_thrown(file: Path, old: str, new: str, message: str) -> None:
    [problem] = problems(file, GOOD.replace(old, new))
    assert str(file) in problem
    assert message in problem


def test_a_variable_reaches_names_that_no_shell_allows_in_one(file: Path) -> None:
    file.write_text(GOOD.replace("small", "llama-3.1/8b"))
    config = config_source.load(file, {"SEMROUTE__POOLS__LLAMA_3_1_8B__CONTEXT": "1000"}).config
    assert config.pools["llama-3.1/8b"].context == 1_000


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SEMROUTE__ADMIN__LISTEN", "x:99999", "admin: the port is above"),
        ("SEMROUTE__SERVER", "{deadline_ms: -1}", "server.deadline_ms: input should be greater"),
        ("SEMROUTE__POOLS__NEW__CLUSTER", "c", "pools.new.model: is required"),
        ("SEMROUTE__DEFAULT_POOL", "2024-13-45", "default_pool: there is no pool '2024-13-45'"),
        (
            "SEMROUTE__POLICIES__MAIN__RULES__0__POOL",
            "large",
            "policies.main.rules: a variable can set a whole list",
        ),
    ],
)
def test_the_variable_is_named_whatever_is_wrong_with_it(
    file: Path, variable: str, value: str, message: str
) -> None:
    text = GOOD.replace("main:\n", "main:\n    rules: [{name: r, when: 'true', pool: small}]\n")
    [problem] = problems(file, text, {variable: value})
    assert problem.startswith(f"{variable} (environment): {message}")


def test_a_variable_is_not_named_for_another_setting_of_the_section_that_it_created(file: Path) -> None:
    file.write_text(GOOD)
    loaded = config_source.load(file, {"SEMROUTE__ADMIN__LISTEN": "127.0.0.1:1"})
    [problem] = loaded.error([Problem(("admin", "token"), "a change here needs a restart")]).problems
    assert problem.startswith(f"{file}:")
    [problem] = loaded.error([Problem(("admin", "listen"), "a change here needs a restart")]).problems
    assert problem.startswith("SEMROUTE__ADMIN__LISTEN (environment)")


def test_a_pool_may_serve_every_api_that_only_some_models_serve() -> None:
    assert set(get_args(ApiName)) == set(Api) - {Api.COUNT_TOKENS, Api.TOKENIZE, Api.OTHER}


@pytest.mark.parametrize(
    ("written", "on", "baseline"),
    [("true", True, None), ("false", False, None), ("{}", True, None), ("{baseline: large}", True, "large")],
)
def test_accounting_is_a_switch_or_its_settings(
    file: Path, written: str, on: bool, baseline: str | None
) -> None:
    file.write_text(f"{GOOD}accounting: {written}\n")
    found = config_source.load(file, {}).config.accounting
    assert (found is not None, found and found.baseline) == (on, baseline)


def test_the_baseline_is_a_pool(file: Path) -> None:
    [problem] = problems(file, f"{GOOD}accounting: {{baseline: lrge}}\n")
    assert "there is no pool 'lrge' (did you mean 'large'?)" in problem
