"""From request bytes to an outcome, in the order of execution.

A request may wait, within one deadline, for the encoder, a judge that a policy asks, and the
conversation's pool in Valkey. Any failure still gives an outcome, from the default pool.
"""

import dataclasses
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import msgspec

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.counting import TokenCounter
from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.events import Emit, Failed, ignore
from semroute_extproc.outcome import Cause, Kind, Outcome
from semroute_extproc.pipeline.driver import Driver, Stages
from semroute_extproc.policy.constraints import Denied, NoCandidate, clamped, near
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.policy.draw import draw_id, drawn
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.request import answers, apis, forms, handover, reasoning
from semroute_extproc.request import body as bodies
from semroute_extproc.request.handover import HANDOVER_HEADER, Handover
from semroute_extproc.request.language import language_of
from semroute_extproc.request.marks import SHIPPED
from semroute_extproc.request.reasoning import Members
from semroute_extproc.request.text import judged
from semroute_extproc.request.tokens import estimate
from semroute_extproc.request.usage import asks_for_usage
from semroute_extproc.request.view import LARGE, Api, Decide, RequestView
from semroute_extproc.settings.names import Named, Names
from semroute_extproc.settings.pools import Pool, ReasoningFamily, VirtualModel
from semroute_extproc.state.controllers import ControllerState, client_of, home
from semroute_extproc.state.sessions import Keys, response_id
from semroute_extproc.state.shared import SharedState
from semroute_extproc.strategies.judge_client import JudgeClient

BYTES, MODEL_BYTES = 1_024, 512  # read in 1 us: of a body with few parts; to find the model
EDIT_SPEED = 8  # how much faster a body is edited than read
INFLATED_BYTES = 32_768  # decoded bytes up to which the event loop decompresses
COUNT_SHARE = 0.5  # share of the time until the deadline for counting tokens
QUALITY_HEADER = "x-semroute-quality"  # The client's trade-off, 0 (cheapest) to 1 (best).

# Decimal digits only: `float` accepts much more.
_NUMBER = re.compile(r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,3})?")
_SPOKEN = {Kind.PASSTHROUGH: "passed through: ", Kind.FALLBACK: "fallback: "}
_REFUSED = {
    BadBody: (400, Cause.NOT_JSON, "unreadable_body"),
    BodyTooLarge: (413, Cause.BODY_TOO_LARGE, "request_too_large"),
    UnsupportedEncoding: (415, Cause.UNSUPPORTED_ENCODING, "unsupported_content_encoding"),
    NoCandidate: (400, Cause.NO_POOL, "no_pool_for_request"),
    Denied: (403, Cause.DENIED, "denied"),
}


class _Asked(NamedTuple):
    """A request as its client sent it."""

    request: Decide
    body: bytes  # decoded
    model: str = ""  # that the path, the query or the body names
    form: str = ""  # content type of a multipart form
    failed: Handover | None = None  # pools that failed before
    document: dict[str, Any] | None = None  # a body that only Python can read, for edits: see `as_python`
    unread: Cause | None = None  # why the body cannot be used
    fixed: bool = False  # the body stays as it is
    parts: int | None = None  # commas and braces in the body; each takes up to 1 us to read
    counted: bool = False  # the structure of the body was checked

    @property
    def decoded(self) -> bool:
        """Whether `body` is not what Envoy has."""
        return self.body is not self.request.body

    @property
    def size(self) -> int:
        """The size for `LargeRequests`; 0 if it is overloaded, so that this request does not wait."""
        return 0 if self.unread is Cause.OVERLOADED else len(self.body)

    @property
    def encoded(self) -> bool:
        """Whether the body has a content-encoding that was not decoded."""
        return not self.decoded and "content-encoding" in self.request.head.headers

    @property
    def tried(self) -> tuple[str, ...]:
        """The pools that failed before."""
        return self.failed.tried if self.failed else ()

    def work(self, speed: int = 1) -> int:
        """Microseconds to read the body, or to skip its parts, which is `speed` times faster."""
        return 0 if self.unread is Cause.OVERLOADED else len(self.body) // BYTES + (self.parts or 0) // speed

    def with_parts(self) -> Self:
        """Count the parts, if they decide whether the event loop reads the body."""
        decide = self.parts is None and LARGE < len(self.body) <= LARGE * BYTES
        return self._replace(parts=bodies.occurrences(self.body, b",{", LARGE)) if decide else self

    def check(self) -> None:
        """Raise BadBody for too much structure, which a body with few commas and braces cannot have."""
        if self.parts is None or self.parts > LARGE:
            bodies.check_structure(self.body)

    def read_model(self) -> str:
        """The model that the path, the query or the body names; raises BadBody."""
        body = self.body
        if self.request.model or self.form:
            return self.request.model or forms.model_of(body, self.form)
        if self.unread is Cause.TOO_MANY_PARTS:
            return apis.model_of(bodies.top_level(body))
        if len(body) > LARGE * MODEL_BYTES:
            # Only roughly on the event loop, which reads an overloaded request.
            bodies.check_structure(body, roughly=self.unread is Cause.OVERLOADED)
        return apis.model_of(body)

    def view(self) -> RequestView:
        """The facts of the body, and of a form the model; raises BadBody."""
        api = self.request.api
        if self.unread is not None or self.form:
            return RequestView(api, self.model)
        self.check()
        view = apis.parse(api, self.body)
        return view if view.model == self.model else dataclasses.replace(view, model=self.model)

    def keeps(self, members: Members) -> bool:
        """Whether Envoy's body already has these members, or must not be changed."""
        same = members == {("model",): self.model} and not (self.decoded or self.request.model)
        return self.fixed or same

    def edited(self, members: Members) -> bytes:
        """The body with members set; in a form only the model."""
        if self.form:
            return forms.set_model(self.body, self.form, str(members["model",]))
        if self.unread is Cause.TOO_MANY_PARTS and self.document is None:
            return bodies.append_members(self.body, members)
        return bodies.set_members(self.body if self.document is None else self.document, members)


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
        shared: SharedState | None = None,
        counter: TokenCounter | None = None,
    ) -> None:
        """`judges` maps a strategy to its judge; `shared` stores conversations for several processes."""
        self.config, self.judges, self.plans, self.classifier = settings, judges or {}, plans, classifier
        self.names = Names(settings.models, settings.policies, settings.pools, settings.default_pool)
        self._routed = routed(settings)
        self._families = reasoning.families(settings.reasoning_families)
        self._emit = emit
        self._controllers, self._shared = controllers or ControllerState(), shared
        self._counter = counter or TokenCounter({})
        self._driver = Driver(settings, plans, classifier, self.judges, emit)
        secret = settings.server.secret
        self._key = secret.get_secret_value().encode()[:64] if secret else self._controllers.own_secret
        self._marks = SHIPPED.extended(settings.text.envelopes)

    async def decide(self, request: Decide) -> Outcome:
        """The outcome of a request whose body is complete, within the deadline; never raises."""
        stages, body, unread = Stages(self.config.server.deadline_ms), request.body, None
        try:
            try:
                body = await self._decoded(request, stages)
            except BadBody as error:
                # Pools ignore content-encoding, so the body may be plain.
                unread = error.cause if error.cause is Cause.OVERLOADED else None
            failed = None
            if self.config.controllers.failover and HANDOVER_HEADER in request.head.headers:
                failed = handover.read(request.head, self.config.pools)
            if failed is not None:
                pool, client = failed.tried[-1], client_of(request.head)
                self._controllers.failed(pool, failed.failure, stages.clock(), client)
            outcome = await self._decided(_Asked(request, body, failed=failed, unread=unread), stages)
        except (BadBody, BodyTooLarge, UnsupportedEncoding, NoCandidate) as error:
            return _rejected(error, request.api, stages)
        except Exception:
            self._emit(Failed("decision.failed", request.head.request_id))
            outcome = self._default(Kind.FALLBACK, Cause.INTERNAL_ERROR, stages)
            # Set the default pool's model name, if the body can still be edited.
            with suppress(Exception):
                model = self.config.pools[outcome.pool].model
                edited = bodies.set_members(body, {("model",): model})
                outcome = msgspec.structs.replace(outcome, body=edited, model=model)
        if body is not request.body:  # Whatever the outcome: pools ignore content-encoding.
            decoded = body if outcome.body is None else outcome.body
            outcome = msgspec.structs.replace(outcome, body=decoded, decoded=True)
        return outcome

    async def _decoded(self, request: Decide, stages: Stages) -> bytes:
        """The body without its content-encoding."""
        encoding, most = request.head.headers.get("content-encoding", ""), self.config.server.body_bytes_max
        try:
            return bodies.decode_body(request.body, encoding, min(INFLATED_BYTES, most) if encoding else most)
        except BodyTooLarge:
            size = len(request.body) + INFLATED_BYTES
            return await stages.run(size, bodies.decode_body, request.body, encoding, most)

    async def _decided(self, asked: _Asked, stages: Stages) -> Outcome:
        """Decide with the body, read as JSON or as Python's json does; if neither works, without it."""
        if asked.unread and (self.config.unreadable == "refuse" or (asked.size == 0 and asked.encoded)):
            raise BadBody(asked.unread)
        try:
            try:
                return await self._route(asked, stages)
            except BadBody as error:
                if error.cause not in (Cause.NOT_JSON, Cause.WRONG_TYPE):
                    raise
            strict, document = await stages.run(asked.size, bodies.as_python, asked.body)
            asked = asked._replace(body=strict, document=document)
            return await self._route(asked, stages)
        except BadBody as error:
            bad = error.cause is Cause.NOT_JSON and asked.encoded
            cause = Cause.BAD_ENCODING if bad else error.cause
        # The second time, the body could not be edited either, so it is not changed.
        return await self._decided(asked._replace(unread=cause, fixed=asked.unread is not None), stages)

    async def _route(self, asked: _Asked, stages: Stages) -> Outcome:
        size = asked.size if asked.unread else asked.size // MODEL_BYTES
        asked, named = await stages.run(size, self._read, asked)
        if named is None:
            return self._default(Kind.PASSTHROUGH, asked.unread or Cause.UNKNOWN_MODEL, stages)
        if (virtual := self._routed.get(named)) is None:
            stages.mark("parse")
            return await self._named(named.pool, asked, stages)
        asked = asked.with_parts()
        view, context = await stages.run(asked.work(), self._known, asked, virtual)
        asked = asked._replace(counted=True)
        if context is None:
            context = await stages.run(view.work, self._context, asked, view, virtual)
        stages.mark("parse")
        policy, keys = policy_of(named.model, virtual, context), Keys()
        if self._controllers.active:
            keys = await stages.run(view.work, self._controllers.keys, asked.request.head, view)
            # Look up the conversation's pool in the shared store or this process, and the pools' load.
            shared = await self._shared.find(keys.find, stages.deadline) if self._shared and keys.find else ""
            held = self._controllers.held(keys.find, shared, view, stages.clock())
            conditions = self._controllers.conditions(stages.clock(), asked.request.head)
            context = dataclasses.replace(context, conditions=conditions, held=held)
            stages.mark("controllers")
        context = await self._counted(context, stages)
        if named.pool:  # No third model may answer, so the policy decides as if no pool had failed.
            tried, conditions = context.tried, dataclasses.replace(context.conditions, failing={})
            context = dataclasses.replace(context, conditions=conditions, tried={})
            decision, context = await self._driver.decide(policy, context, stages)
            context = dataclasses.replace(context, tried=tried)
            # A strategy could have chosen the named pool too; a rule may keep this client away from it.
            choice = decision.choice
            home = {named.pool} & {*choice.stand_ins} if choice else ()
            first, *others = self._same_model(decision.pool, decision.others, asked, stages, *home)
            reason, pools = decision.reason, self.config.pools
            if pools[first].model != pools[decision.pool].model:
                reason += f", but {decision.pool} fails, so the named model answers"
            decision = dataclasses.replace(decision, pool=first, others=tuple(others), reason=reason)
        else:
            decision, context = await self._driver.decide(policy, context, stages)
        self._controllers.pay(context, decision)
        if virtual.canary:
            canary = policy if policy in virtual.canary else ""
            decision = dataclasses.replace(decision, canary=canary, propensity=virtual.shares[policy])
        pool = self.config.pools[decision.pool]
        members = _members(pool, self._families[pool.reasoning], view, decision)
        if (most := clamped(decision.pool, pool, context)) is not None:
            members[(view.output_member,)] = most
        if self._controllers.issues(view):
            members[("request_id",)] = response_id(decision.pool, keys.affinity, secrets.token_hex(8))
        sent = await self._sent(asked, decision.pool, decision.others, members, stages)
        stages.mark("edit")
        times = stages.times
        # Before the controllers learn, so that a shadow sees what the live policy saw.
        shadows = () if asked.failed else await self._driver.shadows(policy, context, decision)
        session = self._learn(context, decision, keys, stages)
        cause = Cause.RULE if decision.rule else Cause.STRATEGY if decision.strategy else Cause.POOL
        kind = Kind.FALLBACK if decision.fallback else Kind.ROUTED
        return Outcome(
            Kind.PASSTHROUGH if asked.fixed else kind,
            decision.fallback or cause,
            reason=_after(asked.failed, decision.reason),
            decision=decision,
            policy=policy,
            max_output_tokens=most,
            alias=named.model,
            prompt_tokens=context.prompt_tokens,
            affinity=keys.affinity,
            session=session,
            shadows=shadows,
            view=view,
            signals=context.signals,
            context=context,
            text=context.text,
            left_out=context.left_out,
            housekeeping=context.housekeeping,
            **sent,
            **times,
        )

    def _read(self, asked: _Asked) -> tuple[_Asked, Named | None]:
        """The client's original request, without edits for a pool that failed, and what its model means.

        The default pool's policy decides about a body that names no known model.
        """
        content_type = asked.request.head.headers.get("content-type", "")
        form = content_type if content_type.lower().startswith(forms.FORM) else ""
        asked, failed = asked._replace(form=form) if form else asked, asked.failed
        try:
            model = asked.read_model()
            if failed is not None and not asked.fixed:
                members = handover.restored(bodies.members_of(asked.body), failed)
                document = asked.document and handover.restored(asked.document, failed)
                asked = asked._replace(body=msgspec.json.encode(members), document=document)
                model = apis.model_of(asked.body)
        except BadBody:
            if asked.unread is None:
                raise
            model, asked = asked.request.model, asked._replace(fixed=True)
        named, unread, fixed = self.names.find(model), asked.unread, asked.fixed
        if named is None:
            unread, fixed = unread or (Cause.UNKNOWN_MODEL if model else Cause.NO_MODEL), True
            default = Named(pool=self.config.default_pool)
            named = default if default in self._routed else None
        sent, body = asked.request, asked.body
        return _Asked(sent, body, model, asked.form, failed, asked.document, unread, fixed), named

    def _known(self, asked: _Asked, virtual: VirtualModel) -> tuple[RequestView, RoutingContext | None]:
        """The facts of a request; and its context, unless that takes too long for the event loop."""
        view = asked.view()
        inline = asked.work() <= LARGE < view.work
        return view, None if inline else self._context(asked, view, virtual)

    def _context(self, asked: _Asked, view: RequestView, model: VirtualModel) -> RoutingContext:
        """What the policy decides on, before the controllers and the encoder add to it."""
        head, failed, unread = asked.request.head, asked.failed, asked.unread
        wanted = head.headers.get(QUALITY_HEADER, "")
        quality = float(wanted) if _NUMBER.fullmatch(wanted) else None
        if quality is None or quality > 1.0:
            quality = model.quality
        text, left_out, housekeeping = judged(view.turns, self._marks)
        low, likely, high = estimate(view)
        tried = {**dict.fromkeys(failed.tried, "failed"), failed.tried[-1]: failed.failure} if failed else {}
        known = language_of(text), likely, text, quality, left_out, housekeeping, None, unread, self._key
        return RoutingContext(head, view, *known, bounds=(low, high), tried=tried, unread=unread is not None)

    async def _named(self, name: str, asked: _Asked, stages: Stages) -> Outcome:
        """Send the request to the named pool; if that fails, to another one with the same model."""
        name, *others = self._same_model(name, self.config.pools, asked, stages)
        state, affinity = self._controllers, ""
        if state.active:
            affinity = state.keys(asked.request.head, RequestView(asked.request.api, asked.model)).affinity
        sent = await self._sent(asked, name, others, {("model",): self.config.pools[name].model}, stages)
        cause, reason = Cause.NAMED_MODEL, _after(asked.failed, Cause.NAMED_MODEL.words)
        return Outcome(Kind.NAMED, cause, reason=reason, affinity=affinity, **sent, **stages.times)

    def _same_model(
        self, name: str, among: Iterable[str], asked: _Asked, stages: Stages, *more: str
    ) -> list[str]:
        """Pools for a named model's request, in order: `name`, those with its model, `more`; never empty."""
        pools = self.config.pools
        twins = (each for each in among if pools[each].model == pools[name].model)
        same = [*dict.fromkeys([name, *twins, *more])]
        left = [each for each in same if each not in asked.tried] or [name]
        return sorted(left, key=self._controllers.failing(stages.clock()).__contains__)

    async def _sent(
        self, asked: _Asked, name: str, others: Sequence[str], members: Members, stages: Stages
    ) -> dict[str, Any]:
        """The fields of an outcome that sends the request to a pool; `others` may follow if that fails."""
        pool, accounting = self.config.pools[name], self.config.accounting
        plan = body = None
        if others or accounting is not None or not asked.keeps(members):
            asked = asked.with_parts()
            work = asked.work(EDIT_SPEED)
            plan, body = await stages.run(work, self._written, asked, name, others, members)
        if plan is not None:
            self._controllers.sent(name, stages.clock(), client_of(asked.request.head))
        return {
            "pool": name,
            "cluster": pool.cluster,
            "model": "" if asked.fixed else pool.model,
            "body": body,
            "failed": asked.failed,
            "handover": plan,
            "candidates": (name, *others) if accounting else (),
        }

    def _written(
        self, asked: _Asked, name: str, others: Sequence[str], members: Members
    ) -> tuple[Handover | None, bytes | None]:
        """The plan for when the pool fails, and the body with members set; None if it equals Envoy's."""
        accounting = self.config.accounting
        wanted = accounting is not None and accounting.include_usage and not asked.fixed
        if wanted and asks_for_usage(asked.request.api, asked.body):
            members = {**members, ("stream_options", "include_usage"): True}
        if not (asked.counted or asked.unread or asked.form):
            asked.check()
        plan = self._plan(asked, name, others, members)
        return plan, None if asked.keeps(members) else asked.edited(members)

    def _plan(self, asked: _Asked, name: str, others: Sequence[str], members: Members) -> Handover | None:
        """The plan for when the pool fails; None if a failure is final."""
        settings, tried = self.config.controllers.failover, (*asked.tried, name)
        if settings is None or not others or len(tried) >= settings.pools_max:
            return None
        if asked.fixed or asked.form or asked.request.api is Api.OTHER:
            return None  # a repeated file or batch would be stored twice
        if asked.unread is Cause.TOO_MANY_PARTS:
            return None  # its members are not known
        original = bodies.members_of(asked.body)
        if asked.request.model:  # Envoy hands the request back with the new path, which names no model
            original["model"] = msgspec.Raw(msgspec.json.encode(asked.model))
        cluster = self.config.pools[name].cluster + settings.cluster_suffix
        return handover.plan(tried, cluster, original, [path[0] for path in members], settings.stored)

    async def _counted(self, context: RoutingContext, stages: Stages) -> RoutingContext:
        """Count the prompt's tokens for pools with a tokenizer whose limit is near the estimate."""
        tokenizers = self._counter.tokenizers
        unsure = [name for name in tokenizers if near(name, self.config.pools[name], context)]
        if not unsure:
            return context
        seconds = (stages.deadline - stages.clock()) * COUNT_SHARE
        counted = await self._counter.bounds(unsure, context.view, seconds)
        stages.mark("count")
        return dataclasses.replace(context, counted=counted)

    def _learn(self, context: RoutingContext, decision: Decision, keys: Keys, stages: Stages) -> str:
        """Tell the controllers about a live decision; returns the effect of the conversation's pool."""
        if keys.keep and self._shared is not None and (pool := home(context, decision)):
            self._shared.keep(keys.keep, pool)
        return self._controllers.decided(context, decision, keys.keep, stages.clock())

    def _default(self, kind: Kind, cause: Cause, stages: Stages) -> Outcome:
        """Send the request unchanged to the default pool."""
        name, reason = self.config.default_pool, _SPOKEN[kind] + cause.words
        found = {"reason": reason, "candidates": (name,) if self.config.accounting else (), **stages.times}
        return Outcome(kind, cause, name, self.config.pools[name].cluster, **found)


def _after(failed: Handover | None, reason: str) -> str:
    """The reason, after the failure of the last pool, if one failed."""
    return reason if failed is None else f"{failed.tried[-1]} failed ({failed.failure}): {reason}"


def routed(settings: Config) -> dict[Named, VirtualModel]:
    """Maps what a client may name to the policy that decides."""
    models = {Named(model=name): each for name, each in settings.models.items()}
    guarded = ((name, each.policy, each.canary) for name, each in settings.pools.items() if each.policy)
    return models | {Named(pool=name): VirtualModel(policy=p, canary=c) for name, p, c in guarded}


def policy_of(model: str, virtual: VirtualModel, context: RoutingContext) -> str:
    """The policy that decides: the model's, or a canary for its share of the requests."""
    return drawn(virtual.shares, model, draw_id(context)) if virtual.canary else virtual.policy


def _members(pool: Pool, family: ReasoningFamily, view: RequestView, decision: Decision) -> Members:
    """The members a decision sets: the model, and reasoning in the terms of the pool's family.

    The client's own effort stays if it set one, unless `override` is on.
    """
    members: Members = {("model",): pool.model}
    effort = decision.reasoning if decision.override or not view.reasoning_set else view.effort
    if effort:
        members |= reasoning.override(family, view.api, effort, view.reasoning_paths)
    if view.thinking_tokens:
        members |= reasoning.budget(family, view.api, view.thinking_tokens)
    return members


def _rejected(
    error: BadBody | BodyTooLarge | UnsupportedEncoding | NoCandidate, api: Api, stages: Stages
) -> Outcome:
    status, cause, code = _REFUSED[type(error)]
    if isinstance(error, BadBody):
        cause = error.cause
        status, code = (503, cause.value) if cause is Cause.OVERLOADED else (status, code)
    kind = "permission_error" if isinstance(error, Denied) else "invalid_request_error"
    answer = answers.error(status, kind, code, str(error).rstrip(".") + ".", api)
    if isinstance(error, BodyTooLarge):
        answer = answers.too_large(error.limit, api)
    # The answer names the client's encoding, but logs must not repeat a client's header.
    reason = cause.words if isinstance(error, UnsupportedEncoding) else str(error)
    return Outcome(Kind.REJECTED, cause, reason=reason, answer=answer, **stages.times)
