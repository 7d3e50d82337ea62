"""From request bytes to an outcome, in reading order.

Three things may be awaited, within one deadline: the encoder, a judge where a policy asks for one, and
the pool of a conversation where a Valkey is configured. Whatever goes wrong, the request gets an
outcome: the default pool's answer is better than none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping
from time import perf_counter

import msgspec

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.envoy import replies as mutations
from semroute_extproc.envoy.exchange import Decide, too_large_answer
from semroute_extproc.errors import BadBody, BodyTooLarge, EncoderUnavailable, UnsupportedEncoding
from semroute_extproc.outcome import Answer, Cause, Kind, Outcome, Stage
from semroute_extproc.pipeline.catalog import Catalog
from semroute_extproc.pipeline.shadows import Shadows
from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import Decision, JudgeWanted, RoutingContext
from semroute_extproc.policy.draw import draw_id, drawn
from semroute_extproc.policy.plan import Policy, Tried
from semroute_extproc.policy.shadow import Shadow
from semroute_extproc.request import apis, edits, reasoning
from semroute_extproc.request.encoding import decode_body
from semroute_extproc.request.language import language_of
from semroute_extproc.request.text import classified_text, estimate_tokens
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.settings.pools import VirtualModel
from semroute_extproc.state.controllers import Controllers, home
from semroute_extproc.state.sessions import NO_KEYS
from semroute_extproc.state.shared_sessions import SharedSessions
from semroute_extproc.strategies.judge_client import JudgeClient

QUALITY_HEADER = "x-semroute-quality"
"""The client's trade-off for one request, 0 (cheapest) to 1 (best); anything else is ignored."""


_NUMBER = re.compile(r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,3})?")
"""Decimal figures alone: `float` takes a good deal more for a number."""
_SPOKEN = {Kind.PASSTHROUGH: "passed through", Kind.FALLBACK: "fallback"}


class Stages:
    """The stages of one decision, timed."""

    def __init__(self) -> None:
        self._done: list[Stage] = []
        self._started = self._last = perf_counter()

    def mark(self, name: str) -> None:
        """The stage `name` ends now."""
        now = perf_counter()
        self._done.append(Stage(name, (self._last - self._started) * 1e3, (now - self._last) * 1e3))
        self._last = now

    @property
    def done(self) -> tuple[Stage, ...]:
        """The stages so far."""
        return tuple(self._done)

    @property
    def total_ms(self) -> float:
        """Milliseconds since the start."""
        return (perf_counter() - self._started) * 1e3


class Pipeline:
    """One generation of the configuration, ready to decide."""

    def __init__(
        self,
        settings: Config,
        policies: Mapping[str, Policy],
        classifier: Classifier,
        on_error: Callable[[str], None],
        judges: Mapping[str, JudgeClient] | None = None,
        controllers: Controllers | None = None,
        shared: SharedSessions | None = None,
        on_shadow: Callable[[Shadow], None] = lambda _: None,
    ) -> None:
        """`on_error` is told the request id while an exception that nobody expected is handled.

        `judges` has one for each `judge` strategy, by its name. Without `controllers` nothing but the
        request counts. `shared` holds the pools of conversations in other processes. `on_shadow` is
        told what a shadow says later.
        """
        self.config = settings
        self.catalog = Catalog(settings)
        self._policies = policies
        self._classifier = classifier
        self._on_error = on_error
        self.judges = judges or {}
        self._controllers = controllers
        self._shared = shared
        self._shadows = Shadows(settings, policies, self.judges, classifier, on_error, on_shadow)

    async def decide(self, request: Decide) -> Outcome:
        """The outcome of a request whose body is complete, within the deadline; never raises."""
        stages = Stages()
        deadline = asyncio.get_running_loop().time() + self.config.server.deadline_ms / 1e3
        body = b""
        try:
            body = decode_body(
                request.body,
                request.head.headers.get("content-encoding", ""),
                self.config.server.body_bytes_max,
            )
            return await self._route(request, body, stages, deadline)
        except BadBody as error:
            return self._default(Kind.PASSTHROUGH, error.cause, stages)
        except (BodyTooLarge, UnsupportedEncoding, NoCandidate) as error:
            return self._reject(request, error, stages)
        except Exception:
            self._on_error(request.head.request_id)
            return self._rescue(body, stages)

    async def _route(self, request: Decide, body: bytes, stages: Stages, deadline: float) -> Outcome:
        model = apis.model_of(body)
        if (pool := self.catalog.serving(model)) is not None:
            stages.mark("parse")
            return self._default(Kind.NAMED, Cause.NAMED_MODEL, stages, pool)
        virtual = self.catalog.virtual.get(model)
        if virtual is None:
            return self._default(Kind.PASSTHROUGH, Cause.UNKNOWN_MODEL if model else Cause.NO_MODEL, stages)
        view = apis.parse(request.api, body)
        text = classified_text(view.turns)
        facts = _facts(request.head, view, text, virtual)
        name = _policy_of(model, virtual, facts)
        stages.mark("parse")
        keys, controllers = NO_KEYS, self._controllers
        if controllers is not None and controllers.active:
            keys = controllers.keys(request.head, view)
            facts = await self._moment(facts, controllers, keys.find, deadline)
            stages.mark("controllers")

        policy = self._policies[name]
        tried: Tried = {}
        decision = policy.decide(facts, tried)
        stages.mark("policy")
        if decision is None:
            try:
                if not text:
                    raise EncoderUnavailable(Cause.NO_TEXT)
                signals = await self._classifier.signals(text, facts.language, deadline)
                facts = facts.with_signals(signals)
            except EncoderUnavailable as error:
                facts = facts.with_fallback(error.cause)
            stages.mark("encode")
            decision = policy.decide(facts, tried)
            stages.mark("policy")
        if isinstance(decision, JudgeWanted):
            judgement = await self.judges[decision.strategy].ask(text, deadline)
            facts = facts.with_judgement(decision.strategy, judgement)
            stages.mark("judge")
            decision = policy.decide(facts)
            stages.mark("policy")
        assert isinstance(decision, Decision), (
            "a policy gave no decision although it had all there is. This is a bug."
        )
        outcome = self._outcome(request, body, facts, decision, name, text, stages)
        session = ""
        if controllers is not None and controllers.active:
            session = controllers.decided(facts, decision, keys.keep, asyncio.get_running_loop().time())
            if keys.keep and self._shared is not None and (pool := home(facts, decision)):
                self._shared.keep(keys.keep, pool)
        shadows = self._shadows.beside(name, facts, decision, text)
        if session or shadows:
            outcome = msgspec.structs.replace(outcome, session=session, shadows=shadows)
        return outcome

    async def _moment(
        self, facts: RoutingContext, controllers: Controllers, key: str, deadline: float
    ) -> RoutingContext:
        """The facts with what the controllers know of the moment and of the conversation."""
        shared = await self._shared.find(key, deadline) if key and self._shared is not None else ""
        now = asyncio.get_running_loop().time()
        held = controllers.held(key, shared, facts.view, now)
        return dataclasses.replace(facts, conditions=controllers.conditions(now), held=held)

    def _outcome(
        self,
        request: Decide,
        body: bytes,
        facts: RoutingContext,
        decision: Decision,
        name: str,
        text: str,
        stages: Stages,
    ) -> Outcome:
        pool = self.catalog.pools[decision.pool]
        new = edits.set_members(body, self.members(facts.view, decision))
        stages.mark("edit")
        return Outcome(
            Kind.FALLBACK if decision.fallback else Kind.ROUTED,
            decision.fallback or _cause(decision),
            pool=decision.pool,
            cluster=pool.cluster,
            model=pool.model,
            reason=decision.reason,
            body=new,
            decoded=body is not request.body,
            decision=decision,
            policy=name,
            view=facts.view,
            signals=facts.signals,
            text=text,
            stages=stages.done,
            total_ms=stages.total_ms,
        )

    def members(self, view: RequestView, decision: Decision) -> dict[tuple[str, ...], object]:
        """The members of the body that a decision sets: the model, and the reasoning switch.

        The switch is only written where the client set none itself, or where the policy overrides it.
        """
        pool = self.catalog.pools[decision.pool]
        members: dict[tuple[str, ...], object] = {("model",): pool.model}
        effort = decision.reasoning
        if effort is not None and decision.override:
            members.update(reasoning.override(pool.reasoning, view.api, effort, view.reasoning_paths))
        elif effort is not None and not view.reasoning_set:
            members.update(reasoning.switch(pool.reasoning, view.api, effort))
        return members

    def _default(self, kind: Kind, cause: Cause, stages: Stages, pool: str = "") -> Outcome:
        """To a pool with the body untouched: the default pool unless one was named."""
        name = pool or self.catalog.default_pool
        return Outcome(
            kind,
            cause,
            pool=name,
            cluster=self.catalog.pools[name].cluster,
            model=self.catalog.pools[name].model if kind is Kind.NAMED else "",
            reason=cause.words if kind is Kind.NAMED else f"{_SPOKEN[kind]}: {cause.words}",
            stages=stages.done,
            total_ms=stages.total_ms,
        )

    def _rescue(self, body: bytes, stages: Stages) -> Outcome:
        """To the default pool, under its model's own name if the body can still be edited."""
        outcome = self._default(Kind.FALLBACK, Cause.INTERNAL_ERROR, stages)
        pool = self.catalog.pools[outcome.pool]
        try:
            edited = edits.set_members(body, {("model",): pool.model})
        except Exception:
            return outcome
        return msgspec.structs.replace(outcome, body=edited, decoded=True, model=pool.model)

    def _reject(self, request: Decide, error: Exception, stages: Stages) -> Outcome:
        cause, answer = _rejection(error, request.api)
        return Outcome(
            Kind.REJECTED,
            cause,
            # The client is told which encoding it sent; a log repeats no header.
            reason=cause.words if isinstance(error, UnsupportedEncoding) else str(error),
            answer=answer,
            stages=stages.done,
            total_ms=stages.total_ms,
        )


def _facts(head: RequestHead, view: RequestView, text: str, virtual: VirtualModel) -> RoutingContext:
    language = language_of(text)
    asked = _quality(head.headers.get(QUALITY_HEADER, ""))
    return RoutingContext(
        head=head,
        view=view,
        language=language,
        prompt_tokens=estimate_tokens(view.characters, language),
        quality=virtual.quality if asked is None else asked,
    )


def _cause(decision: Decision) -> Cause:
    """What decided."""
    if decision.rule:
        return Cause.RULE
    return Cause.STRATEGY if decision.strategy else Cause.POOL


def _policy_of(model: str, virtual: VirtualModel, facts: RoutingContext) -> str:
    """The policy that decides: a canary's share of the requests goes to it."""
    if not virtual.canary:
        return virtual.policy
    rest = max(1.0 - sum(virtual.canary.values()), 0.0)
    return drawn({**virtual.canary, virtual.policy: rest}, model, draw_id(facts))


def _quality(value: str) -> float | None:
    if not _NUMBER.fullmatch(value):
        return None
    quality = float(value)
    return quality if quality <= 1.0 else None


def _rejection(error: Exception, api: Api) -> tuple[Cause, Answer]:
    anthropic = api is Api.MESSAGES
    match error:
        case BodyTooLarge():
            return Cause.BODY_TOO_LARGE, too_large_answer(error.limit, api)
        case UnsupportedEncoding():
            return Cause.UNSUPPORTED_ENCODING, mutations.error_answer(
                415, "invalid_request_error", "unsupported_content_encoding", f"{error}.", anthropic
            )
        case _:
            return Cause.NO_POOL, mutations.error_answer(
                400, "invalid_request_error", "no_pool_for_request", f"{error}.", anthropic
            )
