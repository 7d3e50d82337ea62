"""What the views of the page show: of one process (`Views`), and of all workers together (`present`)."""

import asyncio
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.config.source import as_yaml
from semroute_extproc.errors import ArtifactError, ConfigError
from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.serve.explain import explain_live
from semroute_extproc.serve.reload import LiveConfig
from semroute_extproc.settings.pools import Pool, cost
from semroute_extproc.strategies.calibration import read_calibration
from semroute_extproc.strategies.clusters import Clusters
from semroute_extproc.strategies.pair import PairSettings
from semroute_extproc.telemetry.drift import LARGE, SMALL, Drift
from semroute_extproc.telemetry.page import Form, PageSite, View
from semroute_extproc.telemetry.prom import PrometheusSink
from semroute_extproc.telemetry.recent import DOLLARS, OUTPUT_TOKENS, Recent, details

ROWS_MAX = 100  # decisions in the list
EXPLAIN_SECONDS_MAX = 15.0
REQUEST = (500, OUTPUT_TOKENS)  # assumed tokens of a request and its answer, before the first request
OWN_MIN = 50  # scored decisions from which costs are those of your own requests
CHANGES_MAX = 200  # changes of a file that are shown
SHARES = ("strong_share", "threshold", "max_quality_drop")  # settings of a pair, of which one is set
UNDECIDED = (Kind.PASSTHROUGH, Kind.FALLBACK, Kind.REJECTED)
BODY = {"messages", "prompt", "input"}  # A pasted JSON object with one of these is a body.
GATEWAY = "http://127.0.0.1:10000"  # the shipped Envoy, for the curl line
Z = 1.96  # for a 95 % interval

State = Mapping[str, Any]


class Views:
    """What each view shows of this process; called from the threads of the admin port."""

    def __init__(self, live: LiveConfig, recent: Recent, metrics: PrometheusSink, drift: Drift) -> None:
        """Belongs to the running event loop."""
        self._live, self._recent, self._metrics, self._drift = live, recent, metrics, drift
        self._loop = asyncio.get_running_loop()

    def site(self) -> PageSite:
        """The page of this process."""
        data: dict[str, View] = {"now": lambda _: present([self.state({})]), "decisions": self.decisions}
        own = {"explain": self.explain, "frontier": self.frontier, "pools": self.pools, "config": self.config}
        return PageSite(data | own, data | {"state": self.state})

    def state(self, _: Form) -> dict[str, Any]:
        """The traffic of the last hour, and the state of pools and strategies."""
        live, status = self._live, self._live.controllers.status()
        seen, pools = self._recent.seen, dict[str, Any]()
        sizes = defaultdict[str, list[int]](lambda: [0, 0, 0])
        for each in seen:
            if (tokens := each.outcome.prompt_tokens) > 0:
                known, prompt, answer = sizes[each.outcome.pool]
                sizes[each.outcome.pool] = [known + 1, prompt + tokens, answer + each.answer_tokens]
        for name, pool in live.loaded.config.pools.items():
            loads = {gauge: value for (of, gauge), value in self._metrics.loads.items() if of == name}
            parts = {"pressure": status["pools"].get(name), "health": status["health"].get(name)}
            pools[name] = pool.model_dump(mode="json") | {"load": loads, **parts}
        pairs = {
            name: {key: getattr(each, key) for key in ("weak", "strong", *SHARES)}
            for name, each in live.loaded.config.strategies.items()
            if isinstance(each, PairSettings)
        }
        sha256 = live.loaded.sha256
        times = sorted(each.outcome.total_ms for each in seen if each.outcome.total_ms) or [0.0]
        return {
            "minutes": self._recent.minutes(),
            "sizes": sizes,
            "pools": pools,
            "pairs": pairs,
            "traffic": status["traffic"],
            "ms": [times[len(times) // 2], times[len(times) * 99 // 100]],
            "problems": live.problems,
            "serving": {"sha256": sha256, "generation": live.snapshot.number, "since": live.since},
            "encoders": live.classifier.describe(),
            "queue": live.classifier.waiting,
            "drift": self._drift.shown(),
        }

    def decisions(self, form: Form) -> dict[str, Any]:
        """The newest decisions: all, those of a pool, or those whose request ID or reason contains a text."""
        wanted, pool = form.get("id") or form.get("find", ""), form.get("pool", "")
        found = (s for s in self._recent.seen if wanted in s.request_id and pool in ("", s.outcome.pool))
        detailed, why = map(details, found), form.get("reason", "")
        rows = (row for row in detailed if why in " ".join(map(str, row["facts"].values())))
        return {"rows": [row for row, _ in zip(rows, range(ROWS_MAX), strict=False)]}

    def explain(self, form: Form) -> dict[str, Any]:
        """The decision for what was pasted, which leaves no trace in the live state."""
        live, config = self._live, self._live.loaded.config
        shown: dict[str, Any] = {"models": [*config.models], "report": None, "problem": ""}
        if not (pasted := form.get("text", "")).strip():
            return shown
        path = form.get("path") or "/v1/chat/completions"
        pairs = [line.partition(":") for line in form.get("headers", "").splitlines() if line.strip()]
        if not all(name.strip() and colon for name, colon, _ in pairs):
            return shown | {"problem": "Write each header as `name: value` on a line of its own."}
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        try:
            is_body = bool(BODY & dict(json.loads(pasted)).keys())
        except (ValueError, TypeError, RecursionError):
            is_body = False
        message = {"model": form.get("model", ""), "messages": [{"role": "user", "content": pasted}]}
        body = pasted if is_body else json.dumps(message, ensure_ascii=False)
        work = explain_live(live.snapshot.pipeline, live.controllers, path, headers, body.encode())
        report = asyncio.run_coroutine_threadsafe(work, self._loop).result(EXPLAIN_SECONDS_MAX)
        sent = {"content-type": "application/json", **headers}
        curl = ["curl", "-s", GATEWAY + path, *(f"-H{name}: {value}" for name, value in sent.items())]
        return shown | {"report": report, "curl": shlex.join([*curl, "-d", body])}

    def frontier(self, form: Form) -> dict[str, Any]:
        """Cost and expected quality of a strategy at every strong share."""
        config = self._live.loaded.config
        pairs = {name: each for name, each in config.strategies.items() if isinstance(each, PairSettings)}
        name = form["strategy"] if form.get("strategy") in pairs else next(iter(pairs), "")
        if not name:
            return {"names": []}
        strategy, scored = pairs[name], list[tuple[float, int, int]]()
        for each in self._recent.seen:
            made = each.outcome.decision
            if made and made.strategy == name and made.choice and made.choice.score is not None:
                scored.append((made.choice.score, each.outcome.prompt_tokens, each.answer_tokens))
        own = len(scored) >= OWN_MIN
        sizes = [(prompt, answer) for _, prompt, answer in sorted(scored, reverse=True)] if own else [REQUEST]
        calibration, problem = None, ""
        try:
            calibration = read_calibration(strategy.calibration) if strategy.calibration else None
        except ArtifactError as error:
            problem = str(error)
        asked, configured = form.get("share", ""), strategy.strong_share
        share = min(int(asked), 100) if asked.isdecimal() else round(100 * (configured or 0.3))
        kept = strategy.model_dump(mode="json", exclude_unset=True, exclude={*SHARES})
        return {
            "names": [*pairs],
            "name": name,
            "strategy": strategy,
            "share": share,
            "costs": share_costs(sizes, config.pools[strategy.weak], config.pools[strategy.strong]),
            "quality": intervals(calibration.quality, calibration.rows) if calibration else [],
            "rows": calibration.rows if calibration else 0,
            "problem": problem,
            "own": len(sizes) if own else 0,
            "yaml": as_yaml({"strategies": {name: kept | {"strong_share": share / 100}}}),
        }

    def pools(self, _: Form) -> dict[str, Any]:
        """The pools, and what profiles say about their models."""
        plan = next(iter(self._live.snapshot.pipeline.plans.values()), None)
        compiled = plan.strategies.items() if plan else ()
        clusters = ((name, each) for name, each in compiled if isinstance(each, Clusters))
        rows = [{"name": name, "clusters": each.names, "models": each.profiles()} for name, each in clusters]
        return {**self.state({}), "profiles": rows}

    def config(self, form: Form) -> dict[str, Any]:
        """What is live, and what another file would change."""
        live, checked = self._live, {"yaml", "file"} & form.keys()
        return {
            "live": live,
            "yaml": as_yaml(live.loaded.config.model_dump(mode="json", exclude_unset=True)),
            "encoders": live.classifier.describe(),
            "checked": self._checked(form) if checked else None,
        }

    def _checked(self, form: Form) -> dict[str, Any]:
        """Problems and changes of a pasted file, or of a file in the folder of the live one."""
        live, pasted = self._live, form.get("yaml", "").strip()
        name = "pasted" if pasted else form.get("file", "") or live.path.name
        if Path(name).name != name:
            return {"name": name, "problems": f"Give the name of a file in {live.path.absolute().parent}."}
        with os.fdopen(os.memfd_create(name), "wb", 0) as file:  # A pasted secret is not written to a disk.
            file.write(f"{pasted}\n".encode())
            path = Path(f"/proc/self/fd/{file.fileno()}") if pasted else live.path.absolute().parent / name
            try:
                loaded = live.preview(path)
            except ConfigError as error:
                return {"name": name, "problems": "\n".join(error.problems).replace(str(path), name)}
        old, new = (dict(_flat(each.config.model_dump(mode="json"))) for each in (live.loaded, loaded))
        paths = [each for each in {**old, **new} if old.get(each) != new.get(each)]
        changes = [(each, old.get(each), new.get(each)) for each in paths[:CHANGES_MAX]]
        return {"name": name, "problems": "", "changes": changes, "more": len(paths) - len(changes)}


def present(states: Sequence[State]) -> dict[str, Any]:
    """The view Now, from the states of all workers; `table` and `shadows` list `[label…, count]`."""
    charts = {of: defaultdict[int, Counter[str]](Counter) for of in ("pool", "reason")}
    table, fallbacks, shadows = Counter[tuple[str, str]](), Counter[str](), Counter[tuple[str, ...]]()
    realized, paid = Counter[tuple[str, str]](), defaultdict[str, Counter[str]](Counter)
    undecided, dropped = Counter[str](), 0
    rows = ((minute, row) for state in states for minute, counts in state["minutes"] for row in counts)
    for minute, (metric, *labels, count) in rows:
        if metric == "decisions":
            pool, rule, strategy, _, kind = labels
            chosen = f"strategy {strategy}" if kind == "routed" and strategy else kind
            reason = f"rule {rule}" if rule else chosen
            charts["pool"][minute][pool or "no pool"] += count
            charts["reason"][minute][reason] += count
            table[reason, pool or "no pool"] += count
            realized[strategy, pool] += count if kind == "routed" else 0
        elif metric == "fallbacks":
            fallbacks[labels[0]] += count
        elif metric == "shadow_decisions":
            shadows[tuple(labels)] += count
        elif metric == "outcomes":
            if labels[0] in UNDECIDED and labels[1] != Cause.STORED_RESPONSE:
                undecided[" ".join(labels)] += count
        elif metric == "log_lines_dropped":
            dropped += count
        else:
            paid[metric][labels[0]] += count
    first, pairs = states[0], list[dict[str, Any]]()
    for name, pair in first["pairs"].items():
        strong, weak = realized[name, pair["strong"]], realized[name, pair["weak"]]
        live = [state["traffic"][name]["threshold"] for state in states if name in state["traffic"]]
        share = strong / (strong + weak) if strong + weak else None
        pairs.append({"name": name, **pair, "requests": strong + weak, "realized": share, "thresholds": live})
    drifts = (each for state in states for each in state["drift"])
    # The last one of a bundle is of the worker whose texts differ most.
    drift = {each["bundle"]: each for each in sorted(drifts, key=itemgetter("worst", "texts"))}
    return {
        "charts": charts,
        "table": [[*labels, count] for labels, count in table.items()],
        "fallbacks": fallbacks,
        "shadows": [[*labels, count] for labels, count in shadows.items()],
        "pairs": pairs,
        "money": money(states, table, shadows, paid),
        "pools": first["pools"],
        "ms": [max(state["ms"][index] for state in states) for index in (0, 1)],
        "problems": first["problems"],
        "workers": len(states),
        "workers_wanted": len(states),
        "differ": False,
        "undecided": undecided,
        "dropped": dropped,
        "queue": sum(state["queue"] for state in states),
        **{name: first[name] for name in ("serving", "encoders")},
        "drift": drift,
        "index_limits": (SMALL, LARGE),
    }


def money(
    states: Sequence[State],
    table: Mapping[tuple[str, str], int],
    shadows: Mapping[tuple[str, ...], int],
    paid: Mapping[str, Mapping[str, float]],
) -> dict[str, Any] | None:
    """Dollars of the routed requests: spent, always at the most expensive pool, and by each shadow policy.

    Estimates with the mean size of the pool's latest requests, or of all requests. With accounting, the first
    two are the counted dollars in `paid`. None if unknown.
    """
    prices = {name: pool["price"] for name, pool in states[0]["pools"].items()}
    sizes = {name: [state["sizes"].get(name, (0, 0, 0)) for state in states] for name in prices}
    totals = {name: [sum(column) for column in zip(*rows, strict=True)] for name, rows in sizes.items()}
    every = [sum(column) for column in zip(*totals.values(), strict=True)]
    routed = Counter[str]()
    for (reason, pool), count in table.items():
        if pool in prices and reason.startswith(("rule ", "strategy ", "fallback", "routed")):
            routed[pool] += count
    if not every[0] or not routed or None in prices.values():
        return None

    def dollars(pool: str, sizes_of: str = "") -> float:
        seen, prompt, answer = totals[sizes_of] if sizes_of and totals[sizes_of][0] else every
        return float((prices[pool]["input"] * prompt + prices[pool]["output"] * answer) / seen / 1e6)

    strong = max(prices, key=lambda name: prices[name]["input"] + prices[name]["output"])
    spent = {name: count * dollars(name, name) for name, count in routed.items()}
    always = sum(count * dollars(strong, name) for name, count in routed.items())
    mean, would = sum(spent.values()) / routed.total(), defaultdict[str, float](float)
    for (_, shadow, pool, _), count in shadows.items():
        if pool in prices:
            would[shadow] += count * (mean - dollars(pool))
    cache, sample = 0.0, every[0]
    if real := paid.get("dollars"):
        strong, sample, spent = "the baseline pool", 0, {**real}
        always, cache = (sum(paid[name].values()) for name in DOLLARS[1:])
    total = sum(spent.values())
    found = {"spent": spent, "total": total, "always": always, "cache": cache, "sample": sample}
    return {**found, "strong": strong, "shadows": would}


def share_costs(sizes: Sequence[tuple[int, int]], weak: Pool, strong: Pool) -> list[float]:
    """Dollars per thousand requests at 0, 1, … 100 % strong; `sizes` of requests, the highest score first.

    Empty without prices.
    """
    if weak.price is None or strong.price is None:
        return []
    steps = [sum(cost(weak, *size) for size in sizes)]
    for size in sizes:
        steps.append(steps[-1] + cost(strong, *size) - cost(weak, *size))
    at = np.interp(np.linspace(0, len(sizes), 101), range(len(steps)), steps)
    return [float(each) for each in at * 1000 / len(sizes)]


def intervals(quality: Sequence[float] | None, rows: int) -> list[tuple[float, float, float]]:
    """Each quality with its Wilson interval of 95 %, which is too wide for grades between 0 and 1.

    For outcomes outside 0..1 no interval is known, and both ends are the quality.
    """
    if quality is None or min(quality) < 0.0 or max(quality) > 1.0:
        return [(q, q, q) for q in quality or ()]
    q = np.asarray(quality)
    middle = (q + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * np.sqrt(q * (1 - q) / rows + Z**2 / (4 * rows**2))
    return list(zip(quality, (middle - half).tolist(), (middle + half).tolist(), strict=True))


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path to value of every setting."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
