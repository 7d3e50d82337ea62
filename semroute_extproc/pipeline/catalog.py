"""The pools as the pipeline looks them up: by name, and by the model they serve.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.config.models import Config
from semroute_extproc.settings.pools import Pool, VirtualModel


class Catalog:
    """What clients may ask for, and where it is."""

    def __init__(self, config: Config) -> None:
        self.pools: Mapping[str, Pool] = config.pools
        self.default_pool = config.default_pool
        self.virtual: Mapping[str, VirtualModel] = config.models
        self._serving: dict[str, str] = {}
        for name in (config.default_pool, *config.pools):
            self._serving.setdefault(config.pools[name].model, name)

    def serving(self, model: str) -> str | None:
        """The pool that serves `model` by name; where several do, the default pool or the first."""
        return self._serving.get(model)

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name a client may ask for, routed ones first."""
        return (*self.virtual, *self._serving)
