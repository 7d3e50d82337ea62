"""The demo's requests: thirty-odd of the kinds a gateway sees in a day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TITLE_CHARACTERS_MAX = 58
"""How much of a prompt the table shows."""

CHAT = "/v1/chat/completions"

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="

_WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather forecast for a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}

_MINUTES = "\n".join(
    f"{8 + minute // 60:02}:{minute % 60:02} Team {'ABCDE'[minute % 5]}, work package {minute % 17 + 1}: "
    f"{(minute * 37) % 100} percent done, {minute % 4} open questions, next review in {minute % 9 + 1} days."
    for minute in range(0, 240, 2)
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the demo."""

    kind: str
    title: str
    body: Mapping[str, Any]
    path: str = CHAT
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def stream(self) -> bool:
        """A streamed answer is asked for."""
        return self.body.get("stream") is True


def _chat(kind: str, text: str, *, model: str = "auto", **more: Any) -> Prompt:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return Prompt(kind, _title(text), body, headers=headers)


def _stream(kind: str, text: str) -> Prompt:
    return _chat(kind, text, stream=True, stream_options={"include_usage": True})


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARACTERS_MAX else line[: TITLE_CHARACTERS_MAX - 1] + "…"


def _conversation() -> Prompt:
    turns = [
        ("system", "You are a concise assistant of a hardware shop."),
        ("user", "Which drill bit do I need for a 6 mm wall plug in brick?"),
        ("assistant", "A 6 mm masonry bit."),
        ("user", "And for concrete?"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    return Prompt("dialogue", "And for concrete? (4th turn)", {"model": "auto", "messages": messages})


def _tool_result() -> Prompt:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Do I need an umbrella in Oslo tomorrow?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"rain_mm": 7.4, "wind": "fresh"}'},
    ]
    body = {"model": "auto", "messages": messages, "tools": [_WEATHER_TOOL]}
    return Prompt("tools", "Do I need an umbrella in Oslo tomorrow? (tool result)", body)


def _image(text: str) -> Prompt:
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PIXEL}"}},
    ]
    return Prompt("image", text, {"model": "auto", "messages": [{"role": "user", "content": content}]})


_CODE = """Review this function and fix the race condition without holding the lock during I/O:

```python
class Cache:
    def __init__(self):
        self._lock = threading.Lock()
        self._items = {}

    def get(self, key, load):
        if key not in self._items:
            with self._lock:
                self._items[key] = load(key)
        return self._items[key]
```
Two callers with different keys must not wait for each other, and `load` may raise."""

_PROOF = (
    "Let $f: [0,1] \\to \\mathbb{R}$ be continuous with $\\int_0^1 f(x) x^n dx = 0$ for all $n \\ge 0$. "
    "Prove that $f$ is identically zero, and say where compactness is used."
)

_QUANTUM = (
    "Derive the first-order energy shift of the hydrogen ground state in a uniform electric field and "
    "explain why the linear Stark effect vanishes there but not for $n = 2$."
)

_LIABILITY = (
    "A carrier limits its liability by a clause on the back of the bill of lading, and the shipper never "
    "saw it. Compare how the Hague-Visby Rules and the common law of incorporation by notice would treat it."
)

PROMPTS: tuple[Prompt, ...] = (
    _chat("small talk", "hi there!"),
    _chat("small talk", "Thanks, that helped a lot :)"),
    _chat("small talk", "Tell me a joke about penguins."),
    _chat("chat", "What is the capital of Australia?"),
    _chat("chat", "How long do I boil an egg so that the yolk stays soft?"),
    _chat("chat", "Suggest five names for a grey kitten."),
    _chat("chat", "What's the difference between a lake and a pond?"),
    _conversation(),
    _chat("writing", "Write a two-line birthday wish for a colleague who likes cycling."),
    _chat("writing", "Make this friendlier: 'Send me the report by Monday.'"),
    _chat("code", "Write a Python one-liner that reverses a string."),
    _chat("code", _CODE),
    _chat(
        "code",
        "Implement a lock-free multi-producer single-consumer queue in C++20 and argue its linearizability.",
    ),
    _chat("code", "What does `git stash pop` do?"),
    _chat("maths", "What is 15% of 80?"),
    _chat("proof", _PROOF),
    _chat("proof", "Prove that there are infinitely many primes congruent to 3 modulo 4."),
    _chat("physics", _QUANTUM),
    _chat(
        "chemistry", "Explain why the SN2 rate of neopentyl bromide is so low although its carbon is primary."
    ),
    _chat("health", "What are the usual side effects of ibuprofen?"),
    _chat("law", _LIABILITY),
    _chat(
        "economics",
        "Derive the Slutsky equation from the expenditure function and interpret both of its terms.",
    ),
    _chat("history", "In which year did the Berlin Wall fall?"),
    _chat(
        "philosophy",
        "Reconstruct Kripke's modal argument against descriptivism and its best two-dimensionalist reply.",
    ),
    _chat("tools", "What will the weather be in Oslo this weekend?", tools=[_WEATHER_TOOL]),
    _tool_result(),
    _image("What is in this picture?"),
    _chat("json", "Name three fruits as JSON.", response_format={"type": "json_object"}),
    _chat(
        "long",
        f"These are the minutes of today's reviews.\n{_MINUTES}\nWhich work packages are behind, and why?",
    ),
    _chat("Chinese", "你好,请用一句话介绍一下你自己。"),
    _chat("Chinese", "证明:任意有限整环都是域,并说明为什么有限性是必要的。"),
    _chat("German", "Wie spät ist es in Tokio, wenn es in Berlin 9 Uhr ist?"),
    _stream("streaming", "List three uses for baking soda."),
    _stream(
        "streaming",
        "Explain how Raft keeps its log consistent when a leader fails in the middle of a commit.",
    ),
    Prompt(
        "completions",
        "The quick brown fox",
        {"model": "auto", "prompt": "The quick brown fox", "max_tokens": 24},
        "/v1/completions",
    ),
    Prompt(
        "responses",
        "Give me a synonym for 'quick'.",
        {"model": "auto", "input": "Give me a synonym for 'quick'."},
        "/v1/responses",
    ),
    Prompt(
        "messages",
        "Which planet is the largest?",
        {
            "model": "auto",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": "Which planet is the largest?"}],
            "stream": True,
        },
        "/v1/messages",
    ),
    _chat("named model", "What is the capital of Australia?", model="deepseek-ai/DeepSeek-V3.2"),
    _chat("rule", _PROOF, headers={"x-tier": "internal"}),
    _chat("quality", "Explain how a hash table resolves collisions.", headers={"x-semroute-quality": "1"}),
    _chat("quality", "Explain how a hash table resolves collisions.", headers={"x-semroute-quality": "0"}),
)
"""The requests, in the order in which they are sent."""
