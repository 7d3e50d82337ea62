"""Ask vLLM servers what they are, and guess which model is stronger and what it costs."""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from semroute_extproc.cli import live
from semroute_extproc.errors import EndpointError
from semroute_extproc.state.pool_metrics import fetch

ROUTED = "auto"  # the model name that is routed
NAME = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,127}"  # of a model, as the configuration accepts it
ALIASES_MAX = 64  # of a pool, as well
PRICES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and the servers that serve it."""

    name: str  # of its pool
    model: str
    endpoints: tuple[str, ...]
    aliases: tuple[str, ...]  # its other served names
    context: int | None  # tokens; None if the server does not say
    measured: bool  # its metrics page has vLLM's gauges

    @property
    def billions(self) -> float | None:
        """Its parameters, by its name; None if the name does not say."""
        name = self.model.rpartition("/")[2].lower()
        found = re.findall(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", name)
        if found:
            return max(float(count or 1) * float(size) for count, size in found)
        known = [size for begin, size in PRICES["sizes"].items() if name.startswith(begin)]
        return float(known[0]) if known else None

    @property
    def price(self) -> Mapping[str, float] | None:
        """Guessed dollars per million tokens; None without a known size."""
        if self.billions is None:
            return None
        classes: list[dict[str, float]] = PRICES["classes"]
        return next(each for each in classes if self.billions <= each.get("up_to", float("inf")))

    @property
    def blended(self) -> float:
        """Dollars per million tokens, of which a quarter are the answer's; 0 if unknown."""
        return 0.75 * self.price["input"] + 0.25 * self.price["output"] if self.price else 0.0


def ask(urls: Sequence[str], key: str) -> list[Model]:
    """The models of the servers; servers with the same model are its replicas. Raises EndpointError."""
    models: dict[str, Model] = {}
    for url in urls:
        base = _base(url)
        cards = live.cards(base, key)
        if not re.fullmatch(NAME, cards[0]["id"]):
            problem = f"serves {cards[0]['id']!r}, which cannot be a model's name here"
            raise EndpointError("unreadable", f"{base} {problem}: start it with --served-model-name NAME")
        # An alias may be a pattern, which no server may choose.
        first, others = cards[0], tuple(each["id"] for each in cards[1:] if re.fullmatch(NAME, each["id"]))
        known = models.get(model := str(first["id"]))
        contexts = (known.context if known else None, first.get("max_model_len"))
        name = re.sub("[^a-z0-9.-]", "-", model.rpartition("/")[2].lower()).strip("-.")
        # A number or `true` would not be a name in YAML.
        name = name if re.match("(?!(true|false|null)$)[a-z]", name) else f"m-{name}"
        if known is None and name in {each.name for each in models.values()}:
            name += f"-{len(models) + 1}"
        models[model] = Model(
            known.name if known else name,
            model,
            tuple(dict.fromkeys((*(known.endpoints if known else ()), base))),
            tuple(dict.fromkeys((*(known.aliases if known else ()), *others))),
            min((each for each in contexts if type(each) is int and each > 0), default=None),
            _is_measured(base) and (known is None or known.measured),
        )
    # A name that two models have, or that is routed, means neither of them.
    names = (name.lower() for each in models.values() for name in (each.model, *each.aliases))
    taken = Counter([ROUTED, *names])
    return [
        replace(each, aliases=tuple(name for name in each.aliases if taken[name.lower()] == 1)[:ALIASES_MAX])
        for each in models.values()
    ]


def strongest(models: Sequence[Model], wanted: str) -> tuple[Model, str] | None:
    """The stronger model and the reason; None if nothing says which one it is. Raises EndpointError."""
    if wanted:
        found = next((each for each in models if wanted in (each.model, each.name)), None)
        if found is None:
            known = ", ".join(each.model for each in models)
            raise EndpointError("setup", f"--strong {wanted}: no server has this model; they have {known}")
        return found, "you said so"
    if any(each.billions is None for each in models):
        return None
    ordered = sorted(models, key=lambda each: each.billions or 0.0)
    if ordered[-1].billions == ordered[-2].billions:
        return None
    return ordered[-1], f"{ordered[-1].billions:g} billion parameters, by its name"


def _base(url: str) -> str:
    """The address of a server as in `http://host:8000`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc:
        raise EndpointError("setup", f"{url}: give an address such as http://host:8000")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{parts.port or 80}"


def _is_measured(base: str) -> bool:
    with suppress(Exception):  # whatever the page is
        return bool(fetch(f"{base}/metrics", {}))
    return False
