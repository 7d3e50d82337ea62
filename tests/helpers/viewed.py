"""What a running server has behind its admin page, without Envoy and with an encoder that knows two texts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from builders import BUNDLE, MANIFEST, FakeEncoder, classifier, raw

from semroute_extproc.config import source as config_source
from semroute_extproc.events import Decided, Emit
from semroute_extproc.outcome import Outcome
from semroute_extproc.request.view import Api, Decide, RequestHead
from semroute_extproc.serve.reload import LiveConfig
from semroute_extproc.serve.views import Views
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.telemetry.admin import Asked
from semroute_extproc.telemetry.bus import to_all
from semroute_extproc.telemetry.drift import Drift
from semroute_extproc.telemetry.prom import PrometheusSink
from semroute_extproc.telemetry.recent import COUNTERS, Recent

CONFIG = """\
pools:
  small: {cluster: vllm-small, model: org/small, price: {input: 0.1, output: 0.2}}
  large: {cluster: vllm-large, model: org/large, price: {input: 1.0, output: 2.0}}
default_pool: large
models: {auto: {policy: main}}
policies:
  main:
    rules:
    - {name: internal, when: 'request.headers["x-tier"] == "internal"', pool: small}
    otherwise: {strategy: pair}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
controllers: {session: {}, failover: {}}
"""


class Server:
    """One process; `send` decides a request as the server does, and `get` and `post` ask its page."""

    def __init__(self, folder: Path, text: str = CONFIG) -> None:
        self.file = folder / "semroute.yaml"
        self.file.write_text(text)
        self.metrics = PrometheusSink()
        self.recent = Recent(lambda: self.metrics.totals(*COUNTERS))
        self.drift = Drift({BUNDLE.revision: MANIFEST})
        self.emit: Emit = to_all(self.metrics.handle, self.recent.handle, self.drift.handle)
        self.controllers = ControllerState(bytes(32))
        encoder = classifier(FakeEncoder(lambda text: raw(4.0 if "hard" in text else -4.0)))
        loaded = config_source.load(self.file, {})
        self.live = LiveConfig(self.file, loaded, encoder, self.controllers, self.emit)
        self.views = Views(self.live, self.recent, self.metrics, self.drift)
        self.site = self.views.site()

    async def send(self, text: str, request_id: str = "id", **headers: str) -> Outcome:
        """Decide a request as the server does."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        head = RequestHead("POST", "/v1/chat/completions", {"x-request-id": request_id, **headers})
        decide = Decide(head, Api.CHAT_COMPLETIONS, json.dumps(body).encode())
        outcome = await self.live.snapshot.pipeline.decide(decide)
        self.emit(Decided(outcome, request_id, head.path, (), 1, 2, 3_000_000_000, False))
        return outcome

    async def get(self, url: str) -> str:
        path, _, query = url.partition("?")
        return await self._page(Asked(path, query))

    async def post(self, path: str, body: bytes) -> str:
        return await self._page(Asked(path, body=body))

    async def _page(self, asked: Asked) -> str:
        page = await asyncio.to_thread(self.site, asked)
        assert page is not None
        assert page.status == 200, page.body
        return page.body.decode()
