"""Excludes a pool after failures, for a bounded time. Pure; the time is an argument, in seconds.

Failures are known from requests that Envoy hands back, from the pool's metrics page and from Envoy's view of
the cluster. Successes are not reported, so requests are counted when they are sent: a pool is excluded once
enough of them, and at least half, have failed. An error that the pool answers may be the request's fault, so
most clients must have met one. After a pause one request tests the pool, and no failure for a while is a
success. Envoy tests its hosts itself, so a pool is excluded as long as Envoy has no healthy host.
"""

import math

from semroute_extproc.request.handover import UNREACHABLE
from semroute_extproc.settings.controllers import Failover

FAILED_SHARE_MIN = 0.5  # Share of the requests that must have failed, and that more of the clients must have.
CLIENTS_MAX = 1_024  # Distinguished in a window.
TEST_SECONDS = 5.0  # If the testing request has not failed after this time, the pool is used again.
SCRAPES_MAX = 3  # Failed scrapes in a row that exclude the pool.
NO_METRICS = "metrics page unreachable"


class PoolHealth:
    """The health of one pool."""

    def __init__(self, settings: Failover) -> None:
        self._settings = settings
        self._until = -math.inf  # End of the pause after which a request tests the excluded pool.
        self.why = ""  # Why the pool is excluded, or is being tested; empty if it is not.
        self.in_envoy = ""  # Why Envoy sends no request to the pool's cluster; empty if it does.
        self._sent = self._failures = 0
        self._clients, self._earlier, self._failing = set[str](), set[str](), set[str]()
        """Clients of this window and the one before, and those whose requests failed in this one."""
        self._window = -math.inf  # Start of the counts' window, which is as long as an exclusion.
        self._tested = math.inf  # When a request began to test the excluded pool.
        self._scraped, self._misses = False, 0
        """Whether the metrics page was readable before; otherwise failed scrapes do not count."""

    def excluded(self, now: float) -> str:
        """Why a request should not go to the pool; empty if it may."""
        if self.in_envoy or not self.why:
            return self.in_envoy
        if now - self._tested >= TEST_SECONDS:
            self._readmit()
        return self.why if now < self._until or self._tested <= now else ""

    def sent(self, now: float, client: str = "") -> None:
        """Record a request whose failure would be reported; if the pause is over, it is the test."""
        if not self.why:
            self._roll(now)
            self._sent += 1
            _add(self._clients, client)
        elif now >= self._until and self._tested == math.inf and not self._blamed(client):
            self._tested = now

    def failed(self, failure: str, now: float, client: str = "") -> None:
        """Record a request that the pool failed to answer."""
        if not self.why:
            self._roll(now)
        self._failures += 1
        enough = self._failures >= max(self._settings.failures, FAILED_SHARE_MIN * self._sent)
        if failure != UNREACHABLE:
            if self.why and self._blamed(client):
                return
            _add(self._failing, client)
            enough &= len(self._failing) > FAILED_SHARE_MIN * len(self._clients | self._earlier)
        if self.why or enough:
            self._exclude(failure, now)

    def _blamed(self, client: str) -> bool:
        """Whether requests of this client failed and those of others did not."""
        return client in self._failing and not self._failing >= self._clients | self._earlier

    def scraped(self, read: bool, now: float) -> None:
        """Record whether the metrics page could be read; only a page that was readable can be missed."""
        if read:
            self._scraped, self._misses = True, 0
            if self.why == NO_METRICS:
                self._readmit()
        elif self._scraped:
            self._misses += 1
            if self._misses >= SCRAPES_MAX:
                self._scraped, self._misses = False, 0
                self._exclude(NO_METRICS, now)

    def _exclude(self, why: str, now: float) -> None:
        self.why, self._tested, self._until = why, math.inf, now + self._settings.exclude_seconds

    def _readmit(self) -> None:
        self.why, self._tested, self._window = "", math.inf, -math.inf

    def _roll(self, now: float) -> None:
        """Begin a new window if the last one is over."""
        if now - self._window > self._settings.exclude_seconds:
            self._window, self._sent, self._failures = now, 0, 0
            self._earlier, self._clients, self._failing = self._clients, set(), set()


def _add(clients: set[str], client: str) -> None:
    if len(clients) < CLIENTS_MAX:
        clients.add(client)
