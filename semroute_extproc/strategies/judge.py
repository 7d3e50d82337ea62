"""Judge: selects the strong pool by one token that a judge model predicts.

The causal LLM classifier of RouteLLM (arXiv 2406.18665) lets a model predict, as one label token, how
well the weak model would answer. Ours is asked by prompt instead of being fine-tuned:

    score    1 (useless) to 5 (as good as the best model's answer).
             P(strong wins) = P(1, 2, 3) / P(1 … 5), since RouteLLM counts 4 and 5 as good enough.
    choice   A (the small model is enough) or B (the large one is needed).
             P(strong wins) = P(B) / (P(A) + P(B)).

Only the log-probabilities of these labels at the first position are read, never generated text, so a
prompt injection can change the score and nothing else. Without a score the bundle's difficulty decides,
at the same strong share.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, model_validator

from semroute_extproc.errors import EndpointError
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.request.text import clip
from semroute_extproc.settings.base import Family, FilePath, Name, Url
from semroute_extproc.strategies.cutoff import Cutoff
from semroute_extproc.strategies.idea import Conflicts, Site
from semroute_extproc.strategies.pair import Pair, PairSettings
from semroute_extproc.strategies.threshold import difficulty

Scheme = Literal["score", "choice"]
TOP_LOGPROBS = 20  # tokens asked for at the first position; vLLM's own default bound
LABEL_MASS_MIN = 0.1  # total probability of the labels below which the model did not answer the question
TEXT_CHARACTERS_MAX = 4_000  # of the classified text that the judge gets: head and tail
# Scores of a judge without a calibration: a quality q means the threshold 1 - q.
UNIFORM = tuple(n / 100 for n in range(101))


class JudgeSettings(PairSettings):
    """Selects the strong pool by one token of a judge model (RouteLLM, causal LLM classifier)."""

    kind: Literal["judge"]
    url: Url = Field(
        pattern=r"^https?://[^\s/@]+(/|$)",
        description="Base URL of the judge, without `/chat/completions`: `http://judge:8000/v1`. Do not use "
        "the gateway, which would route the judge's requests again.",
    )
    model: Name = Field(description="Model name at that server.")
    labels: Scheme = Field("score", description="`score`: 1 to 5 for the weak model; `choice`: A or B.")
    timeout_ms: float = Field(60, gt=0, le=10_000, description="Must be below `server.deadline_ms`.")
    concurrency: int = Field(32, ge=1, le=1_024, description="Concurrent calls; the rest get no score.")
    cache_entries: int = Field(4_096, ge=0, le=1_048_576, description="Cached scores; 0: no cache.")
    cache_seconds: float = Field(3_600, gt=0, le=604_800, description="Lifetime of a cached score.")
    breaker_failures: int = Field(5, ge=1, le=1_000, description="Consecutive failures to open the breaker.")
    breaker_seconds: float = Field(10, gt=0, le=3_600, description="Time until a request probes the judge.")
    api_key_env: str | None = Field(
        None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable with the bearer token."
    )
    ca_file: FilePath | None = Field(None, description="Certificates to trust instead of the system's.")
    reasoning: Family = Field("none", description="Reasoning family, used to disable reasoning; see pools.")

    @model_validator(mode="after")
    def _calibrated_share(self) -> Self:
        if self.strong_share is not None and self.calibration is None:
            raise ValueError("strong_share needs a calibration of this judge's scores")
        return self

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with everything the judge's scores depend on."""
        return hashlib.sha256(f"{self.model} {self.labels} {self.reasoning}".encode()).hexdigest()[:12]

    def check(self, models: Collection[str], deadline_ms: float) -> Conflicts:
        """The judge must be asked directly and within the deadline."""
        if self.model in models:
            yield "model", "is a routed name: call the judge at its own server, not through the router"
        if self.timeout_ms >= deadline_ms:
            yield "timeout_ms", f"must be below server.deadline_ms ({deadline_ms:g})"

    def compile(self, site: Site) -> Strategy:
        """Compile for the judge's score, with the bundle's difficulty as fallback; raises Unfit."""
        cutoff = self.cutoff(site, UNIFORM, "judge's score", self.digest)
        # Both scores estimate the same probability, so without a calibration they share the threshold.
        share, threshold = (None, self.threshold) if self.calibration is None else (cutoff.share, None)
        quantiles = site.manifest.difficulty.quantiles
        fallback = Cutoff(self.weak, self.strong, quantiles, share=share, threshold=threshold)
        return Judge(site.name, cutoff, Pair(difficulty, fallback, self.on_unknown))


class Judge(Strategy):
    """Strong if the judge's score ≥ t; without a score, the same share by the bundle's difficulty."""

    needs_signals = hard_preferences = True

    def __init__(self, name: str, cutoff: Cutoff, fallback: Pair) -> None:
        self.name, self._cutoff, self._fallback = name, cutoff, fallback
        self.follows = cutoff.follows

    def wants_judgment(self, context: RoutingContext) -> bool:
        """Whether to ask the judge: only once, and not if the client has a hard preference."""
        return self.name not in context.judgments and not context.hard_preference

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """Choose by the judge's score, or by the difficulty without one."""
        judgment = context.judgments.get(self.name)
        if judgment is None or judgment.score is None:
            return self._fallback.choose(context, candidates)
        return self._cutoff.choose(judgment.score, context)


_ASKED: Mapping[str, Any] = msgspec.toml.decode(Path(__file__).with_name("judge.toml").read_bytes())
_MARKS = " \t\r\n▁Ġ.,:;)(]['\"*`"  # around a label in the variants of its token


@dataclass(frozen=True, slots=True)
class Question:
    """The part of a judge request that the settings determine: everything except the text."""

    model: str
    scheme: Scheme
    extra: tuple[tuple[tuple[str, ...], object], ...] = ()  # members to add, by path: the reasoning switch

    def body(self, text: str) -> dict[str, object]:
        """The chat completion about `text`; its tag is a hash of the text, which cannot contain it."""
        # A lone surrogate, which JSON in UTF-8 cannot represent, becomes a question mark.
        text = clip(text, TEXT_CHARACTERS_MAX).encode("utf-8", "replace").decode()
        tag = "request-" + hashlib.sha256(text.encode()).hexdigest()[:12]
        question = f"<{tag}>\n{text}\n</{tag}>\n\n{_ASKED[self.scheme]['question']}"
        system = {"role": "system", "content": _ASKED["system"].format(tag=tag)}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [system, {"role": "user", "content": question}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
            "stream": False,
        }
        for path, value in self.extra:
            *parents, last = path
            reduce(lambda node, key: node.setdefault(key, {}), parents, body)[last] = value
        return body


def probability(answer: bytes, scheme: Scheme) -> float:
    """P(strong wins), 0..1, from a chat completion; variants of a label add up.

    Raises EndpointError: `unreadable` without log-probabilities, `no_label` if those of the labels are small.
    """
    wins, labels = {True: 0.0, False: 0.0}, _ASKED[scheme]["labels"]
    try:
        [choice, *_] = msgspec.json.decode(answer)["choices"]
        for top in choice["logprobs"]["content"][0]["top_logprobs"]:
            label = top["token"].strip(_MARKS).upper()
            if label in labels:
                wins[labels[label]] += math.exp(min(top["logprob"], 0.0))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise EndpointError("unreadable", "no logprobs: does the server support them?") from None
    if not (mass := sum(wins.values())) >= LABEL_MASS_MIN:
        raise EndpointError("no_label", f"the labels have a total probability of {mass:.3f}")
    return wins[True] / mass
