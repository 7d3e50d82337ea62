"""Controllers: state between requests that moves the trade-off.

Pure; the clock and the hash key are arguments. One `Controllers` lives as long as the process and
outlasts reloads: a part whose settings did not change keeps its state.

    load      scraped gauges to pressure
    budget    a strategy's share or cost held to a target
    session   the pool a conversation is in
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from semroute_extproc.config.models import Config
from semroute_extproc.policy.context import Conditions, Decision, Held, RoutingContext
from semroute_extproc.request.view import RequestHead, RequestView
from semroute_extproc.settings.base import pair_of
from semroute_extproc.settings.controllers import Budget
from semroute_extproc.settings.controllers import Controllers as ControllerSettings
from semroute_extproc.settings.pools import cost
from semroute_extproc.state.budget import BudgetController, Spent
from semroute_extproc.state.pressure import PoolPressure
from semroute_extproc.state.sessions import NO_KEYS, Keys, Sessions, lock_of, session_keys

REFRESH_SECONDS = 0.25
"""How long a snapshot of the pressures counts: they move by seconds, and decisions come by milliseconds."""

QUIET = Conditions()
"""Nothing is known of the moment."""


class Controllers:
    """Every controller of one process."""

    def __init__(self, config: Config, secret: bytes) -> None:
        """`secret` keys the hashes of conversations where no shared key is configured; 64 bytes at most."""
        self._own_secret = secret
        self._config = config
        self._pressures: dict[str, PoolPressure] = {}
        self._budgets: dict[str, BudgetController] = {}
        self._sessions: Sessions | None = None
        self._secret = secret
        self._snapshot: Mapping[str, float] = {}
        self._snapshot_at = -math.inf
        self.active = False
        """Whether anything is configured that looks at requests."""
        self._start(config, None)

    def reload(self, config: Config) -> None:
        """Take new settings; what did not change goes on from where it is."""
        previous, self._config = self._config, config
        self._start(config, previous)

    def _start(self, config: Config, previous: Config | None) -> None:
        settings = config.controllers
        before = previous.controllers if previous else ControllerSettings()
        pressures: dict[str, PoolPressure] = {}
        if settings.load is not None:
            for name, pool in config.pools.items():
                same = settings.load == before.load and previous and previous.pools.get(name) == pool
                kept = self._pressures.get(name) if same else None
                pressures[name] = kept or PoolPressure(settings.load, name)
        budgets: dict[str, BudgetController] = {}
        for name, budget in settings.budgets.items():
            same = previous and previous.strategies.get(name) == config.strategies[name]
            kept_budget = self._budgets.get(name) if same and before.budgets.get(name) == budget else None
            budgets[name] = kept_budget or BudgetController(budget)
        # Replaced as a whole: the admin thread may be reading the old ones.
        self._pressures, self._budgets = pressures, budgets
        self._snapshot_at = -math.inf
        session = settings.session
        if session is None:
            self._sessions = None
        elif self._sessions is None or session != before.session:
            self._sessions = Sessions(session.entries_max, session.ttl_seconds)
            shared = session.remote.key.get_secret_value().encode()[:64] if session.remote else b""
            self._secret = shared or self._own_secret
        self.active = bool(pressures or budgets or session)

    # --- load ---

    def observe(self, pool: str, load: Mapping[str, float], now: float) -> None:
        """A look at a pool's gauges, possibly in vain (empty)."""
        if (pressure := self._pressures.get(pool)) is not None:
            pressure.observe(load, now)

    def conditions(self, now: float) -> Conditions:
        """The moment, for one request."""
        load = self._config.controllers.load
        if load is None and not self._budgets:
            return QUIET
        if now - self._snapshot_at >= REFRESH_SECONDS:
            values = ((name, pressure.at(now)) for name, pressure in self._pressures.items())
            self._snapshot = {name: value for name, value in values if value > 0.0}
            self._snapshot_at = now
        return Conditions(
            self._snapshot,
            {name: budget.leaning for name, budget in self._budgets.items()},
            load.floor if load else 0.0,
            load.ceiling if load else None,
        )

    # --- sessions ---

    def keys(self, head: RequestHead, view: RequestView) -> Keys:
        """The conversation's hashes; empty ones if there is none or sessions are off."""
        return session_keys(head, view, self._secret) if self._sessions is not None else NO_KEYS

    def held(self, key: str, shared: str, view: RequestView, now: float) -> Held | None:
        """The pool that the conversation is in which was left under `key` (`Keys.find`).

        `shared` is what the shared memory says. Where it says nothing (""), this process's own counts: one
        that was emptied or out of reach must not end a tool loop.
        """
        settings = self._config.controllers.session
        if not key or settings is None or self._sessions is None:
            return None
        pool = shared or self._sessions.find(key, now)
        return Held(pool, lock_of(view), settings.margin, settings.strategies) if pool else None

    # --- what was decided ---

    def decided(self, facts: RoutingContext, decision: Decision, key: str, now: float) -> str:
        """Learn from a decision that is acted on; returns what the conversation's pool meant for it.

        `key` is what the conversation is left under, `Keys.keep`. The result is empty if sessions are
        off, and else `none` (the request belongs to no conversation that can be told), `new` (it
        begins one, or one that is not remembered), `same`, `kept` (against what the strategy chose),
        `locked`, `moved`, or `lost` (it had better not move, and its pool is not remembered).
        """
        if (budget := self._budgets.get(decision.strategy)) is not None:
            pair = pair_of(self._config.strategies.get(decision.strategy))
            pressure = facts.conditions.pressure
            pressed = (
                pressure.get(pair[1], 0.0) > pressure.get(pair[0], 0.0)
                if pair is not None
                else bool(pressure)
            )
            spent = self._spent(budget.settings, pair, facts, decision.pool)
            if spent is not None:
                budget.decided(spent, pressed, now)
        if self._sessions is None:
            return ""
        if key and (pool := home(facts, decision)):
            self._sessions.keep(key, pool, now)
        if facts.held is None:
            return "lost" if lock_of(facts.view) else "new" if key else "none"
        return decision.session or ("same" if decision.pool == facts.held.pool else "moved")

    def _spent(
        self, budget: Budget, pair: tuple[str, str] | None, facts: RoutingContext, pool: str
    ) -> Spent | None:
        """What a decision spent; None if the configuration of now does not know its pool or strategy."""
        if budget.strong_share is not None:
            return None if pair is None else Spent(float(pool == pair[1]))
        output = float(min(facts.view.max_output_tokens or budget.output_tokens, budget.output_tokens))
        costs = {
            name: cost(each, facts.prompt_tokens, output)
            for name, each in self._config.pools.items()
            if each.price is not None
        }
        if pool not in costs:
            return None
        # Without a pair the dearest and the cheapest pool are the ends of what leaning can do.
        weak, strong = (costs[name] for name in pair) if pair else (min(costs.values()), max(costs.values()))
        return Spent(costs[pool], strong - weak)

    # --- for people ---

    def status(self) -> dict[str, Any]:
        """The state of every controller, for the admin page and the metrics; changes nothing."""
        pressures = {
            name: {
                "pressure": pressure.last,
                "level": pressure.level,
                "known": pressure.known,
            }
            for name, pressure in self._pressures.items()
        }
        budgets = {
            name: {
                "unit": "share" if budget.settings.strong_share is not None else "dollars_per_request",
                "target": budget.target,
                "realised": budget.realised,
                "leaning": budget.leaning,
                "requests": budget.requests,
            }
            for name, budget in self._budgets.items()
        }
        sessions = None if self._sessions is None else {"entries": len(self._sessions)}
        return {"pools": pressures, "budgets": budgets, "sessions": sessions}


def home(facts: RoutingContext, decision: Decision) -> str:
    """The pool a conversation is in after a decision; empty if that is nowhere yet.

    A fallback moves nothing: a deadline must not decide for the whole conversation.
    """
    if not decision.fallback:
        return decision.pool
    return facts.held.pool if facts.held is not None else ""
