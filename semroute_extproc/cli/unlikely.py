"""Settings that are valid and unlikely: the checks of unlikely.toml, on the machine that will serve."""

import os
import re
import textwrap
import timeit
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from semroute_extproc.cli.envoy_file import message_seconds
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.io.cores import usable_cores
from semroute_extproc.settings.base import Problem
from semroute_extproc.settings.pools import cost

Checks = Sequence[Mapping[str, str]]  # as unlikely.toml describes them
Held = tuple[Mapping[str, str], Problem]
CHECKS: Checks = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())["check"]
WRAP: dict[str, Any] = {"width": 80, "subsequent_indent": "    "}
WRAP |= {"break_long_words": False, "break_on_hyphens": False}
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of the container
TEXT, PASSES = "How do I sort a list?", 4  # that are timed; the fastest pass counts


def this_machine(bundle: Bundle, device: str, limit: Path = LIMIT) -> Mapping[str, float]:
    """Usable cores, bytes of memory, and the milliseconds of a pass, 0 on a GPU; raises BundleError."""
    memory, fastest = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0.0
    if limit.is_file() and (found := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(found))
    if device == "cpu":
        model = OnnxModel(bundle, "cpu")
        fastest = min(timeit.repeat(lambda: model.run([model.framer.frame(TEXT)]), number=1, repeat=PASSES))
    return {"cores": usable_cores(), "memory": memory, "pass_ms": 1e3 * fastest}


def notes(loaded: Loaded, bundle: Bundle, machine: Mapping[str, float]) -> list[Problem]:
    """Every check of unlikely.toml that holds; `bundle` is the default one."""
    pools, settings = loaded.config.pools, loaded.config.model_dump()
    facts = {**settings, **machine, "message_seconds": message_seconds(loaded.config.server)}
    facts["marked"] = any(re.match(r"---(\s|$)|\s*\{", line) for line in loaded.source.lines)
    facts["quantiles"] = bundle.manifest.difficulty.quantiles
    facts["cost"] = lambda name, *tokens: cost(pools[name], *tokens)
    return [problem for _, problem in holding(CHECKS, settings, facts)]


def holding(checks: Checks, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Held]:
    """The checks that hold, each with a problem for every setting of which it does."""
    from jinja2 import Environment

    made = Environment(autoescape=False)  # noqa: S701 - no HTML
    for check in checks:
        parts = [part for part in check["at"].split(".") if part]
        for keys, nodes in _find(settings, parts):
            name = keys[parts.index("*")] if "*" in parts else ""
            own = {**facts, "it": nodes[-1], "of": nodes[-2:][0], "name": name}
            if made.compile_expression(check["when"])(**own):
                yield check, Problem(tuple(keys), made.from_string(check["says"]).render(own).strip())


def _find(settings: Mapping[str, Any], parts: Sequence[str]) -> list[tuple[list[str], list[Any]]]:
    """The keys of every setting of a path that is set, and the values from the root to it."""
    found: list[tuple[list[str], list[Any]]] = [([], [settings])]
    for part in parts:
        known = [each for each in found if isinstance(each[1][-1], dict)]
        steps = [(*each, key) for each in known for key in (each[1][-1] if part == "*" else [part])]
        steps = [each for each in steps if each[1][-1].get(each[2]) is not None]
        found = [([*keys, key], [*nodes, nodes[-1][key]]) for keys, nodes, key in steps]
    return found


def located(loaded: Loaded, problem: Problem, prefix: str = "") -> str:
    """A problem with its location, in 80 columns if the line of the file fits them."""
    head, end, shown = loaded.source.locate(problem).partition("\n")
    return textwrap.fill(head, initial_indent=prefix, **WRAP) + end + shown
