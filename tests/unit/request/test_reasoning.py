"""The reasoning switch of each family, API by API."""

from __future__ import annotations

from typing import Any

import pytest

from semroute_extproc.request.reasoning import (
    FAMILIES,
    KWARGS,
    TEMPLATE_SWITCHES,
    budget,
    families,
    override,
    switch,
)
from semroute_extproc.request.view import Api
from semroute_extproc.settings.base import EFFORTS
from semroute_extproc.settings.pools import ReasoningFamily

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
        assert switch(FAMILIES[family], api, effort) == expected[api], effort


@pytest.mark.parametrize("api", [Api.COMPLETIONS, Api.EMBEDDINGS])
@pytest.mark.parametrize("family", FAMILIES)
def test_apis_without_a_chat_template_have_no_switch(family: str, api: Api):
    assert all(switch(FAMILIES[family], api, effort) == {} for effort in EFFORTS)


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("gpt-oss", ["low", "low", "low", "medium", "high", "high", "high"]),
        ("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    ],
)
def test_efforts_are_written_as_the_family_accepts_them(family: str, written: list[str]):
    assert [switch(FAMILIES[family], CHAT, effort)[("reasoning_effort",)] for effort in EFFORTS] == written


def test_kimi_k3_is_only_given_the_three_efforts_it_accepts():
    written = [switch(FAMILIES["kimi-k3"], CHAT, effort)[("reasoning_effort",)] for effort in EFFORTS[1:]]
    assert written == ["low", "low", "high", "high", "high", "max"]


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_are_only_given_efforts_that_their_api_knows(family: str):
    for effort in EFFORTS:
        written = switch(FAMILIES[family], MESSAGES, effort).get(("output_config", "effort"), "low")
        assert written in ("low", "medium", "high", "xhigh", "max")


def test_an_unknown_effort_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="effort"):
        switch(FAMILIES["qwen3"], CHAT, "enormous")


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
    written = override(FAMILIES[family], api, effort, paths)
    if not switch(FAMILIES[family], api, effort):
        assert written == {}
        return
    assert switch(FAMILIES[family], api, effort).items() <= written.items()
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
    written = override(FAMILIES["gpt-oss"], MESSAGES, "none", [("thinking",)])
    assert written == {("output_config", "effort"): "low", ("thinking",): {"type": "adaptive"}}


def test_what_the_client_did_not_set_is_not_added():
    assert override(FAMILIES["qwen3"], CHAT, "none", []) == switch(FAMILIES["qwen3"], CHAT, "none")


def own(**settings: Any):
    return families({"own": ReasoningFamily.model_validate(settings)})["own"]


def test_a_family_of_the_operators_own_is_added_to_the_built_in_ones():
    found = families({"own": ReasoningFamily(argument="deep")})
    assert found.keys() == {*FAMILIES, "own"}
    assert switch(found["own"], CHAT, "none") == template("deep", False)
    assert switch(found["own"], CHAT, "high") == {}, "it has no way to ask for an effort"


def test_a_family_may_have_a_switch_and_efforts():
    family = own(argument="enable_thinking", on=True, efforts={"minimal": "low", "max": "ultra"})
    assert switch(family, CHAT, "none") == template("enable_thinking", False)
    assert switch(family, CHAT, "minimal") == {
        **template("enable_thinking", True),
        ("reasoning_effort",): "low",
    }
    assert switch(family, CHAT, "max")[("reasoning_effort",)] == "ultra"
    assert switch(family, Api.EMBEDDINGS, "high") == {}


@pytest.mark.parametrize(
    ("takes", "written"),
    [(True, {("thinking_token_budget",): 512}), (False, {("thinking_token_budget",): None}), (None, {})],
)
def test_a_budget_is_written_where_it_is_taken_and_removed_where_it_is_refused(
    takes: bool | None, written: Any
):
    assert budget(own(budget=takes), CHAT, 512) == written
    assert budget(own(budget=takes), MESSAGES, 512) == {}, "the API has no such member"
