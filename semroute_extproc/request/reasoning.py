"""How to set the reasoning effort of each model family, or disable reasoning. Pure.

vLLM 0.32 and 0.33 support two kinds of switches, and each family reads one. An effort (`_by_effort`) is
passed to the chat template and sets `enable_thinking` (ChatCompletionRequest.build_chat_params).
`chat_template_kwargs` are passed to the template too, which drops arguments that it does not declare.
Text completions and embeddings use no chat template, so they have no switch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from semroute_extproc.request.view import Api
from semroute_extproc.settings.base import EFFORTS
from semroute_extproc.settings.pools import ReasoningFamily

Members = dict[tuple[str, ...], object]  # paths in the body to the values to set there

BUDGET = ("thinking_token_budget",)  # the member with vLLM's limit of reasoning tokens
KWARGS = "chat_template_kwargs"  # the member with a client's arguments to the template
TEMPLATE_SWITCHES = ("enable_thinking", "thinking", "thinking_mode", "reasoning_effort")  # its switches

_EFFORT = {
    Api.CHAT_COMPLETIONS: ("reasoning_effort",),
    Api.RESPONSES: ("reasoning", "effort"),
    Api.MESSAGES: ("output_config", "effort"),
}
"""The member in which an API takes an effort."""

# Efforts that a family refuses, to the ones that are written instead.
_HARMONY = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_KIMI_K3 = {"minimal": "low", "medium": "high", "xhigh": "high"}


@dataclass(frozen=True, slots=True)
class Family:
    """The switches of a family; a field stays empty if the family lacks that switch."""

    models: str
    thinks: str  # by default: `yes`, `no`, `always` or `never`; `-` where it depends
    argument: str = ""  # template argument, set to `off` to disable reasoning and to `on` otherwise
    on: object = None  # None: `argument` only disables reasoning, and an effort enables it
    off: object = False
    efforts: Mapping[str, str] | None = None  # efforts that the family spells differently; None: no efforts
    budget: bool | None = None  # the server takes BUDGET; None: it depends on its `--reasoning-parser`


FAMILIES: Mapping[str, Family] = {
    "qwen3": Family("Qwen3 with both modes", "yes", "enable_thinking", on=True),
    "deepseek-v3": Family("DeepSeek V3.1 and V3.2", "no", "thinking", on=True),  # tokenizers/deepseek_v32.py
    "deepseek-v4": Family("DeepSeek V4", "yes", "thinking", efforts={}),  # tokenizers/deepseek_v4.py
    "gpt-oss": Family("gpt-oss", "always", efforts=_HARMONY),  # others are a 400 (harmony_utils); no off
    "granite-3": Family("Granite 3.2", "no", "thinking", on=True),
    "granite-4": Family("Granite 4.2", "yes", "enable_thinking", on=True),  # parser/granite_thinking.py
    "glm-4.5": Family("GLM-4.5 and later", "yes", "enable_thinking", on=True),  # parser/glm47_moe.py
    "gemma-4": Family("Gemma 4", "no", "enable_thinking", on=True),  # parser/gemma4.py
    "holo2": Family("Holo2", "yes", "thinking", on=True),  # DeepSeekV3ReasoningWithThinkingParser
    "kimi-k3": Family("Kimi K3", "yes", "thinking", efforts=_KIMI_K3),  # renderers/kimi_k3.py refuses others
    # minimax_m3_reasoning_parser.py; the template also has "adaptive".
    "minimax-m3": Family("MiniMax M3", "-", "thinking_mode", on="enabled", off="disabled"),
    "effort": Family("any server that takes efforts as they are", "-", efforts={}),
    # `thinking_token_budget` would bound them, but vLLM refuses it without a reasoning parser.
    "always": Family("DeepSeek-R1, QwQ, MiniMax M2, Qwen3 Thinking", "always"),
    "none": Family("models that do not reason, such as Llama 3 or Qwen3 Instruct", "never", budget=False),
}
"""Names for `reasoning` in a pool's configuration."""


def families(own: Mapping[str, ReasoningFamily]) -> Mapping[str, Family]:
    """The built-in families and the operator's."""
    return {**FAMILIES, **{name: Family("", "-", **each.model_dump()) for name, each in own.items()}}


def switch(traits: Family, api: Api, effort: str) -> Members:
    """The members that ask a model of a family for `effort`, empty without a switch; raises ValueError."""
    if effort not in EFFORTS:
        raise ValueError(f"{effort!r} is not a reasoning effort")
    if api not in _EFFORT:
        return {}
    wanted = traits.off if effort == "none" else traits.on
    switches: Members = {}
    if traits.argument and wanted is not None:
        switches[KWARGS, traits.argument] = wanted
    if traits.efforts is not None and not (switches and effort == "none"):
        switches |= _by_effort(api, traits.efforts.get(effort, effort))
    return switches


def budget(traits: Family, api: Api, tokens: int) -> Members:
    """The members that limit the reasoning to a client's `tokens`; removes a limit that would be refused."""
    if api is not Api.CHAT_COMPLETIONS or traits.budget is None:
        return {}
    return {BUDGET: tokens if traits.budget else None}


def override(family: Family, api: Api, effort: str, clients: Iterable[tuple[str, ...]]) -> Members:
    """Like `switch`, and also set the client's own switches at the paths `clients` to the same effort.

    An unchanged switch could win, because in vLLM a template argument takes precedence over the effort.
    Empty for a family without a switch, whose models ignore every switch.
    """
    written = switch(family, api, effort)
    if written:
        effort = (family.efforts or {}).get(effort, effort)
        for path in clients:
            if path not in written:
                written.update(_agreeing(path, effort))
    return written


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
