"""How to set the reasoning effort of each model family, or disable reasoning. Pure.

vLLM 0.32 and 0.33 support two kinds of switches, and each family reads one. An effort (`_by_effort`) is
passed to the chat template and sets `enable_thinking` (ChatCompletionRequest.build_chat_params).
`chat_template_kwargs` are passed to the template too, which drops arguments that it does not declare.
Text completions and embeddings use no chat template, so they have no switch.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from semroute_extproc.request.view import Api
from semroute_extproc.settings.base import EFFORTS
from semroute_extproc.settings.pools import ReasoningFamily

Members = dict[tuple[str, ...], object]  # paths in the body to the values to set there

KWARGS = "chat_template_kwargs"  # the member with a client's arguments to the template
TEMPLATE_SWITCHES = ("enable_thinking", "thinking", "thinking_mode", "reasoning_effort")  # its switches

_EFFORT = {
    Api.CHAT_COMPLETIONS: ("reasoning_effort",),
    Api.RESPONSES: ("reasoning", "effort"),
    Api.MESSAGES: ("output_config", "effort"),
}
"""The member in which an API takes an effort."""


class _BuiltIn(ReasoningFamily):
    """A family of reasoning.toml."""

    models: str
    thinks: str


_DATA = msgspec.toml.decode(Path(__file__).with_name("reasoning.toml").read_bytes())
FAMILIES: Mapping[str, _BuiltIn] = {name: _BuiltIn(**family) for name, family in _DATA.items()}
"""Names for `reasoning` in a pool's configuration."""


def families(own: Mapping[str, ReasoningFamily]) -> Mapping[str, ReasoningFamily]:
    """The built-in families and the operator's."""
    return {**FAMILIES, **own}


def switch(family: ReasoningFamily, api: Api, effort: str) -> Members:
    """The members that ask a model of a family for `effort`, empty without a switch; raises ValueError."""
    if effort not in EFFORTS:
        raise ValueError(f"{effort!r} is not a reasoning effort")
    if api not in _EFFORT:
        return {}
    wanted = family.off if effort == "none" else family.on
    switches: Members = {}
    if family.argument and wanted is not None:
        switches[KWARGS, family.argument] = wanted
    if family.efforts is not None and not (switches and effort == "none"):
        switches |= _by_effort(api, _spelled(family, effort))
    return switches


def budget(family: ReasoningFamily, api: Api, tokens: int) -> Members:
    """The members that limit the reasoning to a client's `tokens`; removes a limit that would be refused."""
    if api is not Api.CHAT_COMPLETIONS or family.budget is None:
        return {}
    return {("thinking_token_budget",): tokens if family.budget else None}


def override(family: ReasoningFamily, api: Api, effort: str, clients: Iterable[tuple[str, ...]]) -> Members:
    """Like `switch`, and also set the client's own switches at the paths `clients` to the same effort.

    An unchanged switch could win, because in vLLM a template argument takes precedence over the effort.
    Empty for a family without a switch, whose models ignore every switch.
    """
    written = switch(family, api, effort)
    if written:
        effort = _spelled(family, effort)
        for path in clients:
            if path not in written:
                written.update(_agreeing(path, effort))
    return written


def _spelled(family: ReasoningFamily, effort: str) -> str:
    """An effort as the family names it."""
    names: Mapping[Any, str] = family.efforts or {}
    return names.get(effort, effort)


def _agreeing(path: tuple[str, ...], effort: str) -> Members:
    """The client's member at `path`, set to an effort that the family accepts."""
    off = effort == "none"
    match path:
        case (_, "thinking_mode"):
            return {path: "disabled" if off else "enabled"}
        case (_, "enable_thinking" | "thinking"):
            return {path: not off}
        case ("thinking",):
            return {path: {"type": "disabled" if off else "adaptive"}}
        case ("output_config", "effort"):
            # `low` stays only where `thinking`, which is read last, switches reasoning off.
            return {path: "low", **_by_effort(Api.MESSAGES, effort)}
        case _:
            return {path: effort}


def _by_effort(api: Api, effort: str) -> Members:
    """An effort as its API spells it; Anthropic's API has neither `minimal` nor `none`."""
    if api is Api.MESSAGES and effort == "none":
        # vLLM turns it into the effort `none` (AnthropicServingMessages._handle_thinking).
        return {("thinking",): {"type": "disabled"}}
    return {_EFFORT[api]: "low" if api is Api.MESSAGES and effort == "minimal" else effort}
