"""Controllers keep state between requests and shift the trade-off. Pure; time and hash key are arguments."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from semroute_extproc.policy.context import Conditions, Decision, Held, RoutingContext, Strategy
from semroute_extproc.policy.rules import TENANT_HEADER
from semroute_extproc.request.handover import CONTEXT
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.settings.base import pair_of
from semroute_extproc.settings.controllers import Controllers
from semroute_extproc.settings.pools import Pool, cost
from semroute_extproc.state.budget import BudgetController
from semroute_extproc.state.envoy_health import NO_CLUSTER
from semroute_extproc.state.ledger import Ledgers
from semroute_extproc.state.live import LiveScores
from semroute_extproc.state.pool_health import PoolHealth
from semroute_extproc.state.pressure import PoolPressure
from semroute_extproc.state.sessions import Keys, Sessions, lock_of, session_keys, stored_in, tag

REFRESH_SECONDS = 0.25  # Lifetime of a snapshot of the pressures, which change over seconds.
CLIENT_HEADERS = ("x-semroute-tenant", "x-envoy-external-address")  # The first that is present counts.


class ControllerState:
    """The controllers of one process, inactive until configured. A reload keeps unchanged parts."""

    def __init__(self, secret: bytes = b"") -> None:
        """`secret`, at most 64 bytes, keys conversations and draws if no shared key is configured."""
        self.ledgers = Ledgers(time.time)
        self.hurry: Callable[[], None] = lambda: None  # Called if a larger part of a limit is needed soon.
        self.own_secret = self._secret = secret
        self._shared_secret = b""  # the same in every process; replicas are chosen by it
        self._tags: Mapping[str, str] = {}
        self._pools: Mapping[str, Pool] = {}
        self._settings = Controllers()
        self._strategies: Mapping[str, object] = {}
        self._pressures: dict[str, PoolPressure] = {}
        self._budgets: dict[str, BudgetController] = {}
        self.traffic: Mapping[str, LiveScores] = {}  # by strategy
        self._sessions: Sessions | None = None
        self._health: dict[str, PoolHealth] = {}
        self._snapshot: Mapping[str, float] = {}
        self._snapshot_at = -math.inf

    def configure(
        self, pools: Mapping[str, Pool], settings: Controllers, strategies: Mapping[str, object]
    ) -> None:
        """Apply new settings, including those of the strategies."""
        before, load, session, failover = self._settings, settings.load, settings.session, settings.failover
        pressures: dict[str, PoolPressure] = {}
        health: dict[str, PoolHealth] = {}
        for name, pool in pools.items():
            same = self._pools.get(name) == pool
            if load is not None:
                kept = same and load == before.load
                pressures[name] = self._pressures[name] if kept else PoolPressure(load, name)
            if failover is not None:
                kept = same and failover == before.failover
                health[name] = self._health[name] if kept else PoolHealth(failover)
        budgets: dict[str, BudgetController] = {}
        for name, budget in settings.budgets.items():
            same = before.budgets.get(name) == budget and self._strategies.get(name) == strategies[name]
            budgets[name] = self._budgets[name] if same else BudgetController(budget)
        self.ledgers.configure(settings.limits, settings.store.replicas if settings.store else 0)
        if (session, settings.store) != (before.session, before.store):
            self._sessions = Sessions(session.entries_max, session.ttl_seconds) if session else None
            shared = settings.store.key.get_secret_value() if session and settings.store else ""
            self._shared_secret = shared.encode()[:64]
            self._secret = self._shared_secret or self.own_secret
        self._tags = {tag(name): name for name in pools}
        # Replaced, not changed in place, because the admin thread may be reading the old ones.
        self._pressures, self._budgets, self._health = pressures, budgets, health
        self._pools, self._settings, self._strategies = pools, settings, strategies
        self._snapshot_at = -math.inf

    def follow(self, strategies: Mapping[str, Strategy]) -> None:
        """Keep the live scores of the compiled strategies whose reference is the same, start the others."""
        traffic = {name: LiveScores(*each.follows) for name, each in strategies.items() if each.follows}
        for name, fresh in traffic.items():
            known = self.traffic.get(name)
            if known is not None and known.reference == fresh.reference:
                known.share, traffic[name] = fresh.share, known
        self.traffic = traffic

    @property
    def active(self) -> bool:
        """Whether anything is configured."""
        settings, states = self._settings, (self._pressures, self._budgets, self.traffic, self._health)
        return any((*states, settings.session, settings.limits))

    def failing(self, now: float) -> Mapping[str, str]:
        """The pools that are excluded after failures, and why."""
        return {name: why for name, each in self._health.items() if (why := each.excluded(now))}

    def sent(self, pool: str, now: float, client: str = "") -> None:
        """A client's request goes to `pool`, and will be handed back if it fails."""
        if (health := self._health.get(pool)) is not None:
            health.sent(now, client)

    def failed(self, pool: str, failure: str, now: float, client: str = "") -> None:
        """A request was handed back because `pool` failed; a prompt that is too long does not count."""
        if (health := self._health.get(pool)) is not None and failure != CONTEXT:
            health.failed(failure, now, client)

    def observe(self, pool: str, load: Mapping[str, float], now: float, failed: bool = False) -> None:
        """Take a pool's gauges; `load` is empty, and `failed`, if they could not be read."""
        if (health := self._health.get(pool)) is not None:
            health.scraped(not failed, now)
        if (pressure := self._pressures.get(pool)) is not None:
            pressure.observe(load, now)

    def envoy_checked(self, clusters: Mapping[str, str]) -> None:
        """Take Envoy's view of its clusters, which is empty if unknown."""
        for name, health in self._health.items():
            health.in_envoy = clusters.get(self._pools[name].cluster, NO_CLUSTER if clusters else "")

    def conditions(self, now: float, head: RequestHead | None = None) -> Conditions:
        """The conditions for one request, whose tenant is in its `head`."""
        limits = self.ledgers.of(head.headers.get(TENANT_HEADER, "") if head else "")
        if now - self._snapshot_at >= REFRESH_SECONDS:
            values = ((name, pressure.at(now)) for name, pressure in self._pressures.items())
            self._snapshot = {name: value for name, value in values if value > 0.0}
            self._snapshot_at = now
        biases = {name: budget.bias for name, budget in self._budgets.items()}
        load = self._settings.load
        floor, ceiling = (load.floor, load.ceiling) if load else (0.0, None)
        return Conditions(self._snapshot, biases, self.traffic, floor, ceiling, self.failing(now), limits)

    def keys(self, head: RequestHead, view: RequestView) -> Keys:
        """The keys of the request's conversation; empty if it has none or sessions are off."""
        if (settings := self._settings.session) is None:
            return Keys()
        keys = session_keys(head, view, self._secret, settings, self._shared_secret)
        _, issued = stored_in(view.ids.get("previous_response_id", ""))
        return keys._replace(affinity=issued or keys.affinity)

    def issues(self, view: RequestView) -> bool:
        """Whether to set the ID of the request's response: the client did not set one."""
        session = self._settings.session
        on = session is not None and session.response_ids
        return on and view.api is Api.RESPONSES and "request_id" not in view.ids

    def held(self, key: str, shared: str, view: RequestView, now: float) -> Held | None:
        """The pool stored under `key` (`Keys.find`): `shared`, from the shared store, or this process's.

        The fallback to this process keeps tool loops intact if the store was flushed or is unreachable.
        """
        settings = self._settings.session
        if settings is None or self._sessions is None:
            return None
        # An issued ID says which pool stores the earlier turns; any other name may be of a later pool.
        pool = self._tags.get(stored_in(view.ids.get("previous_response_id", ""))[0])
        pool = pool or shared or (self._sessions.find(key, now) if key else None)
        return Held(pool, lock_of(view), settings.margin, settings.strategies) if pool else None

    def decided(self, context: RoutingContext, decision: Decision, key: str, now: float) -> str:
        """Learn from a live decision; returns how the conversation's pool affected it.

        `key` is `Keys.keep`. The result is empty if sessions are off, else `none` (the conversation is
        unknown), `new` (it begins, or its pool is not stored), `same`, `kept` (the strategy chose another
        pool), `locked`, `moved`, or `lost` (it must not move, but its pool is not stored).
        """
        if not context.tried:  # A request counts once, however many pools fail.
            if (budget := self._budgets.get(decision.strategy)) is not None:
                self._pay(budget, context, decision, now)
            sample = decision.choice.sample if decision.choice is not None else None
            if sample is not None and (traffic := self.traffic.get(decision.strategy)) is not None:
                traffic.learn(*sample)
        if self._sessions is None:
            return ""
        if key and (pool := home(context, decision)):
            self._sessions.keep(key, pool, now)
        if context.held is None:
            return "lost" if lock_of(context.view) else "new" if key else "none"
        return decision.session or ("same" if decision.pool == context.held.pool else "moved")

    def pay(self, context: RoutingContext, decision: Decision) -> None:
        """Count a decision for its limits, unless it chose the cheapest pool; every attempt counts."""
        limits, tokens = context.conditions.limits, context.prompt_tokens
        output = context.view.max_output_tokens
        among = {name: self._pools[name] for name in (decision.pool, *decision.others) if name in self._pools}
        for ledger in (limits[name] for name in {"", decision.strategy} & limits.keys() if among):
            costs = {name: cost(pool, tokens, output or 1) for name, pool in among.items()}
            counts = {name: ledger.cost(pool, tokens, output) for name, pool in among.items()}
            pays = costs.get(decision.pool, 0.0) > min(costs.values())
            ledger.spend(counts[decision.pool] if pays else 0.0, max(counts.values()), self.ledgers.wall())
            if ledger.low:
                self.hurry()

    def _pay(self, budget: BudgetController, context: RoutingContext, decision: Decision, now: float) -> None:
        """Report a decision, unless the current configuration lacks its pool, price or strategy."""
        pair = pair_of(self._strategies.get(decision.strategy))
        pressure = context.conditions.pressure
        pressed = pressure.get(pair[1], 0.0) > pressure.get(pair[0], 0.0) if pair else bool(pressure)
        if budget.settings.strong_share is not None:
            if pair is not None:
                budget.decided(float(decision.pool == pair[1]), now, pressed=pressed)
            return
        most = budget.settings.output_tokens
        output = min(context.view.max_output_tokens or most, most)
        priced = {name: pool for name, pool in self._pools.items() if pool.price is not None}
        costs = {name: cost(pool, context.prompt_tokens, output) for name, pool in priced.items()}
        if (spent := costs.get(decision.pool)) is not None:
            # Without a pair, the bias moves requests between the cheapest and the most expensive pool.
            ends = [costs[name] for name in pair] if pair else [min(costs.values()), max(costs.values())]
            budget.decided(spent, now, spread=ends[1] - ends[0], pressed=pressed)

    def status(self) -> dict[str, Any]:
        """The state of every controller, for the admin page and the metrics; changes nothing."""
        pressures = {
            name: {"pressure": pressure.last, "level": pressure.level, "known": pressure.known}
            for name, pressure in self._pressures.items()
        }
        budgets = {
            name: {
                "unit": "share" if budget.settings.strong_share is not None else "dollars_per_request",
                "target": budget.target,
                "realized": budget.realized,
                "leaning": budget.bias,
                "requests": budget.requests,
            }
            for name, budget in self._budgets.items()
        }
        traffic = {name: each.status() for name, each in self.traffic.items()}
        sessions = None if self._sessions is None else {"entries": len(self._sessions)}
        whys = {name: each.in_envoy or each.why for name, each in self._health.items()}
        health = {name: {"excluded": bool(why), "why": why} for name, why in whys.items()}
        states = {"pools": pressures, "budgets": budgets, "traffic": traffic, "sessions": sessions}
        return {**states, "health": health}


def client_of(head: RequestHead) -> str:
    """What identifies a client as far as Envoy forwards it; empty if nothing does."""
    return next((head.headers[name] for name in CLIENT_HEADERS if name in head.headers), "")


def home(context: RoutingContext, decision: Decision) -> str:
    """The conversation's pool after a decision, "" for none; a fallback does not change it."""
    if not decision.fallback:
        return decision.pool
    return context.held.pool if context.held is not None else ""
