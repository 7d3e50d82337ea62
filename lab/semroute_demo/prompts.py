"""The demo's requests: about forty of the kinds that a gateway sees, from prompts.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TITLE_CHARACTERS_MAX = 58
"""How much of a prompt the table shows."""

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the demo."""

    kind: str
    title: str
    body: Mapping[str, Any]
    path: str
    headers: Mapping[str, str]


def _prompt(
    kind: str,
    text: str = "",
    title: str = "",
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> Prompt:
    if text:
        body = {"messages": [{"role": "user", "content": text}], **body}
    title = title or " ".join(text.split())
    if len(title) > TITLE_CHARACTERS_MAX:
        title = title[: TITLE_CHARACTERS_MAX - 1] + "…"
    return Prompt(kind, title, {"model": "auto", **body}, path, headers or {})


def prompts() -> list[Prompt]:
    """The requests, in the order in which they are sent."""
    entries = YAML(typ="safe", pure=True).load(Path(__file__).with_name("prompts.yaml").read_text())
    return [_prompt(**entry) for entry in entries]
