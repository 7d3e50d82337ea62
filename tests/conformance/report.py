"""The page docs/conformance.md, made from the results of a run."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping

from semroute_demo.envoy import find_envoy
from table import ENVOY, RAW, AtEnvoy, Raw

HEAD = """\
# Conformance

What Envoy's filter `ext_proc` may send, and what the sidecar answers: {total} cases, each from a row of
[tests/conformance/table.py](../tests/conformance/table.py). `make conformance` runs them and writes this
page; the cases are also part of the ordinary test run. The raw cases are conversations of a gRPC client
with the served sidecar. The cases at Envoy are requests of clients, most of them written byte by byte, at
Envoy {version} in front of the sidecar and two simulated pools.

**The last run: {passed} of {total} passed.**

The words of a raw case, one for each message that Envoy sends:

| word | the sidecar |
|---|---|
| `ask` | asks for the buffered body (mode override) |
| `read` | lets Envoy send the body as it is configured to |
| `small`, `large` | sends the request to this pool; with `*`, with a new body |
| `skip large` | the same at the headers, and declines the body (mode override) |
| `same` | changes nothing, or has ended the stream |
| `echo` | returns the piece (full duplex) |
| `200`, `413` | answers the client itself |
| `-` | does not reply |
| `?` | may reply or end the stream, but keeps serving |

One more test sends a body in 500,000 pieces (10,000 in the ordinary run).
"""


def page(results: Mapping[str, str]) -> str:
    """The whole page; a case that did not run is marked."""
    cases: dict[str, list[Raw | AtEnvoy]] = defaultdict(list)
    for case in (*RAW, *ENVOY):
        cases[case.area].append(case)
    passed = sum(results.get(f"{case.area}/{case.name}") == "passed" for case in (*RAW, *ENVOY))
    version = find_envoy_version()
    parts = [HEAD.format(total=len(RAW) + len(ENVOY), passed=passed, version=version)]
    for area, rows in cases.items():
        parts.append(f"## {area[0].upper()}{area[1:]}\n")
        parts.append("| case | expected | result |\n|---|---|---|")
        for case in rows:
            result = results.get(f"{area}/{case.name}", "not run")
            parts.append(f"| {case.name} | {expected(case)} | {result} |")
        parts.append("")
    return "\n".join(parts)


def expected(case: Raw | AtEnvoy) -> str:
    """What must come back, in the words of the table."""
    if isinstance(case, AtEnvoy):
        return f"`{case.expected}`"
    words = ", ".join(f"`{word}`" for word in case.words)
    outcome = f"; counted as {case.outcome}" if case.outcome not in ("", "?") else ""
    return words + outcome + (f"; ends with {case.end}" if case.end not in ("OK", "?") else "")


def find_envoy_version() -> str:
    """The version of the binary that the cases run on."""
    printed = subprocess.run(
        [str(find_envoy()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"/(\d+\.\d+\.\d+)", printed)
    return found[1] if found else printed.strip()
