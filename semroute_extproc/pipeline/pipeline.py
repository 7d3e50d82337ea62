"""From request bytes to an outcome, in the order of execution.

A request may wait, within one deadline, for the encoder, a judge that a policy asks, and the
conversation's pool in Valkey. Any failure still gives an outcome, from the default pool.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.counting import TokenCounter
from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.events import Emit, Failed, ignore
from semroute_extproc.outcome import Cause, Kind, Outcome
from semroute_extproc.pipeline.driver import Driver, Stages
from semroute_extproc.policy.constraints import NoCandidate, clamped, near
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.policy.draw import draw_id, drawn
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.request import answers, apis, reasoning
from semroute_extproc.request.body import decode_body, set_members
from semroute_extproc.request.language import language_of
from semroute_extproc.request.marks import SHIPPED, Marks
from semroute_extproc.request.text import judged
from semroute_extproc.request.tokens import estimate
from semroute_extproc.request.view import Api, Decide, RequestHead, RequestView
from semroute_extproc.settings.pools import Pool, VirtualModel
from semroute_extproc.state.controllers import ControllerState, home
from semroute_extproc.state.sessions import Keys, response_id
from semroute_extproc.state.shared_sessions import SharedSessions
from semroute_extproc.strategies.judge_client import JudgeClient

COUNT_SHARE = 0.5  # of the time until the deadline that counting tokens may take
QUALITY_HEADER = "x-semroute-quality"  # The client's trade-off, 0 (cheapest) to 1 (best), or ignored.

# Decimal digits only: `float` accepts much more.
_NUMBER = re.compile(r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,3})?")
_SPOKEN = {Kind.PASSTHROUGH: "passed through: ", Kind.FALLBACK: "fallback: "}
_REFUSED = {
    BodyTooLarge: (413, Cause.BODY_TOO_LARGE, "request_too_large"),
    UnsupportedEncoding: (415, Cause.UNSUPPORTED_ENCODING, "unsupported_content_encoding"),
    NoCandidate: (400, Cause.NO_POOL, "no_pool_for_request"),
}


class Pipeline:
    """One config snapshot, ready to decide."""

    def __init__(
        self,
        settings: Config,
        plans: Mapping[str, PolicyPlan],
        classifier: Classifier,
        emit: Emit = ignore,
        judges: Mapping[str, JudgeClient] | None = None,
        controllers: ControllerState | None = None,
        shared: SharedSessions | None = None,
        counter: TokenCounter | None = None,
    ) -> None:
        """`judges` maps a strategy to its judge; `shared` stores conversations for several processes."""
        self.config, self.judges = settings, judges or {}
        self._serving: dict[str, str] = {}  # Model to pool; of several pools, the default or the first.
        for name in (settings.default_pool, *settings.pools):
            self._serving.setdefault(settings.pools[name].model, name)
        self.names = (*settings.models, *self._serving)  # What clients may ask for, routed ones first.
        self._emit = emit
        self._controllers, self._shared = controllers or ControllerState(), shared
        self._counter = counter or TokenCounter({})
        self._driver = Driver(settings, plans, classifier, self.judges, emit)
        self._marks = SHIPPED.extended(settings.text.envelopes)

    async def decide(self, request: Decide) -> Outcome:
        """The outcome of a request whose body is complete, within the deadline; never raises."""
        stages, body = Stages(self.config.server.deadline_ms), b""
        try:
            encoding = request.head.headers.get("content-encoding", "")
            body = decode_body(request.body, encoding, self.config.server.body_bytes_max)
            return await self._route(request, body, stages)
        except BadBody as error:
            return self._default(Kind.PASSTHROUGH, error.cause, stages)
        except (BodyTooLarge, UnsupportedEncoding, NoCandidate) as error:
            return _rejected(error, request.api, stages)
        except Exception:
            self._emit(Failed("decision.failed", request.head.request_id))
            outcome = self._default(Kind.FALLBACK, Cause.INTERNAL_ERROR, stages)
            # Set the default pool's model name, if the body can still be edited.
            with suppress(Exception):
                model = self.config.pools[outcome.pool].model
                edited = set_members(body, {("model",): model})
                outcome = msgspec.structs.replace(outcome, body=edited, decoded=True, model=model)
            return outcome

    async def _route(self, request: Decide, body: bytes, stages: Stages) -> Outcome:
        model = apis.model_of(body)
        if (named := self._serving.get(model)) is not None:
            stages.mark("parse")
            outcome = self._default(Kind.NAMED, Cause.NAMED_MODEL, stages, named)
            affinity = self._controllers.keys(request.head, RequestView(request.api, model)).affinity
            return msgspec.structs.replace(outcome, affinity=affinity) if affinity else outcome
        if (virtual := self.config.models.get(model)) is None:
            return self._default(Kind.PASSTHROUGH, Cause.UNKNOWN_MODEL if model else Cause.NO_MODEL, stages)
        view = apis.parse(request.api, body)
        context = _context(request.head, view, virtual, self._marks)
        policy = _policy_of(model, virtual, context)
        stages.mark("parse")
        keys = Keys()
        if self._controllers.active:
            keys = self._controllers.keys(request.head, view)
            # Look up the conversation's pool in the shared store or this process, and the pools' load.
            shared = await self._shared.find(keys.find, stages.deadline) if self._shared and keys.find else ""
            now = asyncio.get_running_loop().time()
            held = self._controllers.held(keys.find, shared, view, now)
            context = dataclasses.replace(context, conditions=self._controllers.conditions(now), held=held)
            stages.mark("controllers")
        context = await self._counted(context, stages)
        decision, context = await self._driver.decide(policy, context, stages)
        if policy != virtual.policy:
            decision = dataclasses.replace(decision, canary=policy)
        pool = self.config.pools[decision.pool]
        most = clamped(decision.pool, pool, context)
        members = _members(pool, view, decision)
        if most is not None:
            members[(view.output_member,)] = most
        if self._controllers.issues(view):
            members[("request_id",)] = response_id(decision.pool, keys.affinity, secrets.token_hex(8))
        edited = set_members(body, members)
        stages.mark("edit")
        times = stages.times
        # Before the controllers learn, so that a shadow sees what the live policy saw.
        shadows = await self._driver.shadows(policy, context, decision)
        session = self._learn(context, decision, keys)
        cause = Cause.RULE if decision.rule else Cause.STRATEGY if decision.strategy else Cause.POOL
        return Outcome(
            Kind.FALLBACK if decision.fallback else Kind.ROUTED,
            decision.fallback or cause,
            pool=decision.pool,
            cluster=pool.cluster,
            model=pool.model,
            reason=decision.reason,
            body=edited,
            decoded=body is not request.body,
            decision=decision,
            policy=policy,
            max_output_tokens=most,
            affinity=keys.affinity,
            session=session,
            shadows=shadows,
            view=view,
            signals=context.signals,
            text=context.text,
            left_out=context.left_out,
            housekeeping=context.housekeeping,
            **times,
        )

    async def _counted(self, context: RoutingContext, stages: Stages) -> RoutingContext:
        """Count the prompt's tokens for pools whose tokenizer must say whether it fits."""
        tokenizers = self._counter.tokenizers
        unsure = [name for name in tokenizers if near(name, self.config.pools[name], context)]
        if not unsure:
            return context
        seconds = (stages.deadline - asyncio.get_running_loop().time()) * COUNT_SHARE
        counted = await self._counter.bounds(unsure, context.view, seconds)
        stages.mark("count")
        return dataclasses.replace(context, counted=counted)

    def _learn(self, context: RoutingContext, decision: Decision, keys: Keys) -> str:
        """Tell the controllers about a live decision; returns the effect of the conversation's pool."""
        if keys.keep and self._shared is not None and (pool := home(context, decision)):
            self._shared.keep(keys.keep, pool)
        return self._controllers.decided(context, decision, keys.keep, asyncio.get_running_loop().time())

    def _default(self, kind: Kind, cause: Cause, stages: Stages, name: str = "") -> Outcome:
        """Send the request unchanged to the default pool, unless another pool is given."""
        name = name or self.config.default_pool
        pool, reason = self.config.pools[name], _SPOKEN.get(kind, "") + cause.words
        model = pool.model if kind is Kind.NAMED else ""
        return Outcome(kind, cause, name, pool.cluster, model, reason, **stages.times)


def _context(head: RequestHead, view: RequestView, virtual: VirtualModel, marks: Marks) -> RoutingContext:
    asked = head.headers.get(QUALITY_HEADER, "")
    quality = float(asked) if _NUMBER.fullmatch(asked) else None
    if quality is None or quality > 1.0:
        quality = virtual.quality
    text, left_out, housekeeping = judged(view.turns, marks)
    low, likely, high = estimate(view)
    about = left_out, housekeeping
    return RoutingContext(head, view, language_of(text), likely, text, quality, *about, bounds=(low, high))


def _policy_of(model: str, virtual: VirtualModel, context: RoutingContext) -> str:
    """The policy that decides: the model's, or a canary for its share of the requests."""
    if not virtual.canary:
        return virtual.policy
    rest = max(1.0 - sum(virtual.canary.values()), 0.0)
    return drawn({**virtual.canary, virtual.policy: rest}, model, draw_id(context))


def _members(pool: Pool, view: RequestView, decision: Decision) -> reasoning.Members:
    """The members a decision sets: the model, and reasoning if the client set none or `override` is on."""
    switches: reasoning.Members = {}
    if (effort := decision.reasoning) is not None and (decision.override or not view.reasoning_set):
        switches = reasoning.override(pool.reasoning, view.api, effort, view.reasoning_paths)
    return {("model",): pool.model, **switches}


def _rejected(error: BodyTooLarge | UnsupportedEncoding | NoCandidate, api: Api, stages: Stages) -> Outcome:
    status, cause, code = _REFUSED[type(error)]
    answer = answers.error(status, "invalid_request_error", code, f"{error}.", api is Api.MESSAGES)
    if isinstance(error, BodyTooLarge):
        answer = answers.too_large(error.limit, api)
    # The answer names the client's encoding, but logs must not repeat a client's header.
    reason = cause.words if isinstance(error, UnsupportedEncoding) else str(error)
    return Outcome(Kind.REJECTED, cause, reason=reason, answer=answer, **stages.times)
