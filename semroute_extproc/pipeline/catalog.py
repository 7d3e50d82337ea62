"""The pools by name and by the model they serve.

Pure.
"""

from __future__ import annotations

from semroute_extproc.config.models import Config


class Catalog:
    """The models that clients may ask for, and their pools."""

    def __init__(self, config: Config) -> None:
        self.pools = config.pools
        self.default_pool = config.default_pool
        self.virtual = config.models
        self._serving: dict[str, str] = {}
        for name in (config.default_pool, *config.pools):
            self._serving.setdefault(config.pools[name].model, name)

    def serving(self, model: str) -> str | None:
        """The pool that serves `model` by name; of several, the default pool or the first."""
        return self._serving.get(model)

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name a client may ask for, routed ones first."""
        return (*self.virtual, *self._serving)
