"""The frozen facts of one request, read once from its headers and body. Pure: no parsing, no policy."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import msgspec


class Api(enum.StrEnum):
    """An API of vLLM or of a server that extends it; requests of the first five are routed by content."""

    CHAT_COMPLETIONS = "chat_completions"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    POOLING = "pooling"
    CLASSIFY = "classify"
    TRANSCRIPTIONS = "transcriptions"
    TRANSLATIONS = "translations"
    SPEECH = "speech"
    IMAGES = "images"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, reduced to its text."""

    role: str  # `system`, `user`, `assistant` or `tool`
    text: str
    failed: bool = False  # a tool's result that the client marked as an error


class RequestHead(msgspec.Struct, frozen=True):
    """The request's headers, as Envoy forwarded them."""

    method: str
    path: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Lower-case names to values; pseudo-headers (`:method`, …) are left out."""

    @property
    def request_id(self) -> str:
        """`x-request-id`; not unique, because retries and some clients repeat it."""
        return self.headers.get("x-request-id", "")


LARGE, SHORT = 2_048, 4_096  # microseconds of work for the event loop; characters without a count of lines
LINE_WORK, CHARACTERS = 2, 128  # microseconds to judge a line or turn, and characters per microsecond


@dataclass(frozen=True)
class RequestView:
    """The facts of a parsed body that constraints, rules and strategies use."""

    api: Api
    model: str  # requested model name; empty if there is none
    turns: tuple[Turn, ...] = ()
    stream: bool = False
    images: int = 0  # parts that are images, or of an unknown kind
    audio: int = 0
    video: int = 0
    files: int = 0  # documents that are not text
    tools: int = 0  # tools that the client declared
    tool_loop: bool = False  # the last turn is a tool's result: the model is in the middle of a task
    json_mode: bool = False  # the output format is a JSON object or schema
    max_output_tokens: int | None = None
    effort: str = ""  # the requested reasoning effort; empty if none
    reasoning_set: bool = False  # the client set any reasoning switch (effort, thinking, template kwargs)
    reasoning_paths: tuple[tuple[str, ...], ...] = ()  # the client's switches that a policy can replace
    thinking_tokens: int | None = None  # the client's limit of reasoning tokens
    output_member: str = ""  # the member of the body that says `max_output_tokens`
    prompt_limit: int | None = None  # the server cuts the prompt to so many tokens; 0: to what fits
    media_tokens: int = 0  # likely tokens of all media
    ids: Mapping[str, str] = field(default_factory=dict)  # names of its conversation or response, by member
    stateful: bool = False  # continues state that is kept on one server (`previous_response_id`)
    foreign: bool = False  # the history has tool calls with IDs that Mistral's templates refuse
    printed: tuple[bytes, ...] = ()  # JSON that the chat template prints: tool declarations and calls
    user: str = ""  # the end user that the client names
    metadata: Mapping[str, str] = field(default_factory=dict)  # the client's strings
    characters: int = 0  # of all text, tool declarations included; of a batch, those of the longest prompt

    @cached_property
    def work(self) -> int:
        """How long the text of its turns takes to judge, in microseconds; beyond `LARGE`, at least."""
        size, turns = sum(len(turn.text) for turn in self.turns), len(self.turns)
        work = size // CHARACTERS
        if work > LARGE or (size <= SHORT and turns * LINE_WORK <= LARGE):
            return work
        # Lines, more for labels, also those that JSON or the tokens of a template become; names and tags.
        text = "".join(turn.text for turn in self.turns)
        marks = {"\n": 1, "\\": 1, '":': 1, ":\n": 2, "<|": 4}
        marks |= {each: 1 for each in "<[" if each in text and f"{each}/" in text}
        return work + LINE_WORK * sum((text.count(m) * n for m, n in marks.items() if m[0] in text), turns)

    @property
    def texts(self) -> list[str | bytes]:
        """All text of the prompt."""
        return [*(turn.text for turn in self.turns), *self.printed]


class Decide(msgspec.Struct, frozen=True):
    """A request whose body is complete."""

    head: RequestHead
    api: Api
    body: bytes
    model: str = ""  # named outside of the body, by the path or the query
