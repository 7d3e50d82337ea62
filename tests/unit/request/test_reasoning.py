"""The reasoning switch of each family, API by API."""

from __future__ import annotations

from typing import Any

import pytest

from semroute_extproc.request.reasoning import FAMILIES, KWARGS, TEMPLATE_SWITCHES, override, switch
from semroute_extproc.request.view import Api
from semroute_extproc.settings.base import EFFORTS

CHAT, RESPONSES, MESSAGES = Api.CHAT_COMPLETIONS, Api.RESPONSES, Api.MESSAGES
DISABLED = {("thinking",): {"type": "disabled"}}


def template(name: str, value: object) -> dict[tuple[str, ...], object]:
    return {("chat_template_kwargs", name): value}


def by_effort(effort: str) -> dict[Api, Any]:
    return {
        CHAT: {("reasoning_effort",): effort},
        RESPONSES: {("reasoning", "effort"): effort},
        MESSAGES: {("output_config", "effort"): effort},
    }


def everywhere(members: dict[tuple[str, ...], object]) -> dict[Api, Any]:
    return dict.fromkeys((CHAT, RESPONSES, MESSAGES), members)


def on_off(name: str, on: object = True, off: object = False) -> tuple[dict[Api, Any], ...]:
    return everywhere(template(name, off)), *2 * (everywhere(template(name, on)),)


OFF_BY_EFFORT = {**by_effort("none"), MESSAGES: DISABLED}
# Family to the members that are set for none, low and high.
TABLE: dict[str, tuple[dict[Api, Any], ...]] = {
    "qwen3": on_off("enable_thinking"),
    "deepseek-v3": on_off("thinking"),
    "deepseek-v4": (everywhere(template("thinking", False)), by_effort("low"), by_effort("high")),
    "gpt-oss": (by_effort("low"), by_effort("low"), by_effort("high")),
    "granite-3": on_off("thinking"),
    "granite-4": on_off("enable_thinking"),
    "glm-4.5": on_off("enable_thinking"),
    "gemma-4": on_off("enable_thinking"),
    "holo2": on_off("thinking"),
    "kimi-k3": (everywhere(template("thinking", False)), by_effort("low"), by_effort("high")),
    "minimax-m3": on_off("thinking_mode", "enabled", "disabled"),
    "effort": (OFF_BY_EFFORT, by_effort("low"), by_effort("high")),
    "always": (everywhere({}), everywhere({}), everywhere({})),
    "none": (everywhere({}), everywhere({}), everywhere({})),
}


def test_the_table_below_covers_every_family():
    assert TABLE.keys() == FAMILIES.keys()


@pytest.mark.parametrize("api", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("family", TABLE)
def test_every_family_is_switched_in_its_own_way(family: str, api: Api):
    for effort, expected in zip(("none", "low", "high"), TABLE[family], strict=True):
        assert switch(family, api, effort) == expected[api], effort


@pytest.mark.parametrize("api", [Api.COMPLETIONS, Api.EMBEDDINGS])
@pytest.mark.parametrize("family", FAMILIES)
def test_apis_without_a_chat_template_have_no_switch(family: str, api: Api):
    assert all(switch(family, api, effort) == {} for effort in EFFORTS)


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("gpt-oss", ["low", "low", "low", "medium", "high", "high", "high"]),
        ("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    ],
)
def test_efforts_are_written_as_the_family_accepts_them(family: str, written: list[str]):
    assert [switch(family, CHAT, effort)[("reasoning_effort",)] for effort in EFFORTS] == written


def test_kimi_k3_is_only_given_the_three_efforts_it_accepts():
    written = [switch("kimi-k3", CHAT, effort)[("reasoning_effort",)] for effort in EFFORTS[1:]]
    assert written == ["low", "low", "high", "high", "high", "max"]


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_are_only_given_efforts_that_their_api_knows(family: str):
    for effort in EFFORTS:
        written = switch(family, MESSAGES, effort).get(("output_config", "effort"), "low")
        assert written in ("low", "medium", "high", "xhigh", "max")


def test_unknown_families_and_efforts_are_mistakes_of_the_caller():
    with pytest.raises(ValueError, match="family"):
        switch("gpt-4", CHAT, "low")
    with pytest.raises(ValueError, match="effort"):
        switch("qwen3", CHAT, "enormous")


CLIENTS: dict[Api, list[tuple[str, ...]]] = {
    CHAT: [("reasoning_effort",)],
    RESPONSES: [("reasoning", "effort")],
    MESSAGES: [("thinking",), ("output_config", "effort")],
}


@pytest.mark.parametrize("api", CLIENTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("effort", EFFORTS)
def test_an_override_writes_the_switch_and_leaves_no_other_that_disagrees(family: str, api: Api, effort: str):
    """Afterwards every member that the client set agrees with the policy."""
    paths = [*CLIENTS[api], *((KWARGS, name) for name in TEMPLATE_SWITCHES)]
    written = override(family, api, effort, paths)
    if not switch(family, api, effort):
        assert written == {}
        return
    assert switch(family, api, effort).items() <= written.items()
    off = (FAMILIES[family].efforts or {}).get(effort, effort) == "none"
    for path in paths:
        value = written[path]
        match path:
            case ("thinking",):
                assert value == {"type": "disabled" if off else "adaptive"}
            case ("output_config", "effort"):
                assert value in ("low", "medium", "high", "xhigh", "max")
            case (_, "thinking_mode"):
                assert value == ("disabled" if off else "enabled")
            case (_, "enable_thinking" | "thinking"):
                assert value is not off
            case _:
                assert (value == "none") == off


def test_a_family_that_cannot_be_switched_off_is_not_told_off_by_another_member():
    written = override("gpt-oss", MESSAGES, "none", [("thinking",)])
    assert written == {("output_config", "effort"): "low", ("thinking",): {"type": "adaptive"}}


def test_what_the_client_did_not_set_is_not_added():
    assert override("qwen3", CHAT, "none", []) == switch("qwen3", CHAT, "none")
