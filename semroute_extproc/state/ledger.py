"""Spending limits, held by several processes together. Pure; the wall clock is an argument.

In each window a process may spend its *allowance*, and a request that costs more than what is left of it gets
the cheapest pool. The shared store hands out allowances whose sum never exceeds the limit (`lease.lua`), so
nothing waits for it: a process holds a part of the allowance in reserve and asks for more in the background.
In a window that began without the store, the allowance is an equal part of the limit (docs/adr/0019).
"""

import math
from collections.abc import Callable, Iterator

from semroute_extproc.settings.controllers import Limit, Limits
from semroute_extproc.settings.pools import Pool, cost

LEDGERS_MAX = 10_000  # Limits in use; further tenants share one, until some have expired.
STARTER = 0.05  # Part of an equal share that a process may spend before it has a lease.
BUSY, IDLE = 0.5, 0.05  # Lease of a process, in equal shares of what is not granted yet.
BUSY_SECONDS = 10.0  # that a lease stays large after a request
CONTACT_SECONDS = 2.0  # From an answer of the store, in which it may still count the process as present.
REPORT_SECONDS = 2.0  # Interval of reports of a ledger with a lease that was not used.
OTHERS = "*"


class Ledger:
    """One limit in its current window."""

    def __init__(self, name: str, limit: Limit, processes: int) -> None:
        """`processes` share it by a store; 0: there is no store."""
        self.name, self.limit, self.processes = name, limit, processes
        self.window = -1  # Its number since 1970.
        self.spent = self.allowance = self.total = self.free = 0.0
        self.want = 0.0  # Most that the last request could cost.
        self.answered, self.away = True, False  # The store has given an allowance; it does not answer now.
        self._used = self.reported = -math.inf
        self.changed, self._sent = False, 0.0

    @property
    def most(self) -> float:
        """The limit."""
        return self.limit.dollars or self.limit.tokens or 0.0

    @property
    def began(self) -> float:
        """When the window began, in seconds since the epoch."""
        return self.window * self.limit.window_seconds

    @property
    def left(self) -> float:
        """What this process may still spend."""
        return self.allowance - self.spent

    @property
    def why(self) -> str:
        """What a request lacks that costs more than what is left."""
        unit = f"{self.limit.dollars:g} dollars" if self.limit.dollars else f"{self.most:g} tokens"
        whose = self.name.partition(":")[0]
        away = " (the store does not answer)" if self.away else ""
        return f"budget{away}: the {whose}'s {unit} per {self.limit.window_seconds:g} s are spent"

    def cost(self, pool: Pool, prompt_tokens: int, output_tokens: int | None) -> float:
        """What a request counts in a pool, in the limit's unit."""
        output = min(output_tokens or self.limit.output_tokens, self.limit.output_tokens)
        return cost(pool, prompt_tokens, output) if self.limit.dollars else prompt_tokens + output

    def begin(self, now: float, contact: float) -> None:
        """Begin a new window if it is time; `contact` is when the store last answered."""
        self.away = self.processes > 0 and now - contact > CONTACT_SECONDS
        if (window := int(now / self.limit.window_seconds)) <= self.window:
            return  # It is the same, or the clock was set back.
        self.window, self.spent, self.total, self.free = window, 0.0, 0.0, self.most
        self.answered, self.changed = not self.processes, False
        share = self.most / max(self.processes, 1)
        # The store reserves a share for a process that it has not heard of since the window began.
        alone = self.answered or contact + CONTACT_SECONDS < self.began
        self.allowance = share if alone else share * STARTER

    def spend(self, amount: float, want: float, now: float) -> None:
        """Count a request; `want` is its cost in the most expensive pool."""
        self.spent += amount
        # A request that no cheaper pool can serve may exceed the allowance.
        self.allowance = max(self.allowance, self.spent)
        self.want, self._used = want, now
        self.changed = self.changed or amount > 0.0 or self.left < want

    def due(self, now: float) -> bool:
        """Whether a report to the store is due."""
        stale = now - self.reported > REPORT_SECONDS and self.reported >= self.began
        return self.changed or (stale and now - self._used < BUSY_SECONDS * 2)

    @property
    def low(self) -> bool:
        """Whether a larger lease should come soon."""
        return self.changed and self.free > 0.0 and self.left < 2 * self.want

    def report(self, now: float) -> tuple[float, float, float, float, float]:
        """Allowance, spent, total, and the lease wanted: in shares of what is free, and at least."""
        part = BUSY if now - self._used < BUSY_SECONDS else IDLE
        if self.answered:  # Return what others may need more.
            keep = max(part * self.free / self.processes, self.want)
            self.allowance = min(self.allowance, self.spent + 2 * keep)
        self.reported, self._sent = now, self.spent
        return self.allowance, self.spent, self.total, part, self.want

    def granted(self, grant: tuple[float, float, float], window: int) -> None:
        """Take the store's answer to a report: the allowance, those of all, and what is free."""
        if window == self.window:
            allowance, self.total, self.free = grant
            self.allowance = max(allowance, self.spent)
            self.answered, self.changed = True, self.spent != self._sent


class Ledgers:
    """The ledgers of one process."""

    def __init__(self, wall: Callable[[], float]) -> None:
        """`wall` is the time in seconds since the epoch."""
        self.wall, self.contact = wall, -math.inf  # When the store last answered.
        self._limits, self._processes = Limits(), 0
        self._ledgers: dict[str, Ledger] = {}

    def configure(self, limits: Limits | None, processes: int) -> None:
        """Apply settings; what was spent in the window stays."""
        self._limits, self._processes = limits or Limits(), processes
        for name, ledger in list(self._ledgers.items()):
            kind, _, key = name.partition(":")
            limit = self._limits.strategies.get(key) if kind == "strategy" else self._of_tenant(key)
            if limit is None:
                del self._ledgers[name]
            else:
                ledger.limit, ledger.processes = limit, processes

    def of(self, tenant: str) -> dict[str, Ledger]:
        """The limits that may apply to a request: by strategy, and the tenant's under an empty name."""
        found = {key: self._get(f"strategy:{key}", limit) for key, limit in self._limits.strategies.items()}
        if (limit := self._of_tenant(tenant)) is not None:
            found[""] = self._get(f"tenant:{tenant}", limit)
        return found

    def due(self, now: float) -> Iterator[Ledger]:
        """Those whose report to the store is due; drops those of past windows."""
        for name, ledger in list(self._ledgers.items()):
            if now > ledger.began + 2 * ledger.limit.window_seconds:
                del self._ledgers[name]
            elif ledger.due(now):
                yield ledger

    def forget(self) -> None:
        """Report everything again, because the store has lost what it knew."""
        for ledger in self._ledgers.values():
            ledger.changed = ledger.changed or ledger.reported >= ledger.began

    def _of_tenant(self, tenant: str) -> Limit | None:
        return self._limits.tenants.get(tenant) or self._limits.tenants.get(OTHERS)

    def _get(self, name: str, limit: Limit) -> Ledger:
        if name not in self._ledgers:
            if len(self._ledgers) >= LEDGERS_MAX:
                name = f"tenant:{OTHERS}"
            self._ledgers.setdefault(name, Ledger(name, limit, self._processes))
        ledger = self._ledgers[name]
        ledger.begin(self.wall(), self.contact)
        return ledger
