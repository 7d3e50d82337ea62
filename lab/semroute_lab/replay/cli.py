"""`semroute replay` and `semroute outcomes`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.config.source import load
from semroute_extproc.errors import DataError
from semroute_extproc.telemetry.feedback import Report
from semroute_extproc.telemetry.record import of_outcome
from semroute_lab.common import options
from semroute_lab.common.decisions import DecisionLog, Record
from semroute_lab.common.engine import engine
from semroute_lab.common.options import EXISTING, TABLE, option, shown
from semroute_lab.common.tables import read_table
from semroute_lab.common.writing import write_whole
from semroute_lab.replay.redecide import NotLogged, Redecider
from semroute_lab.replay.report import REFUSED, Tally, share

TEXT_CHARACTERS = 60  # Of a prompt in an example


@click.command()
@click.argument("log", type=TABLE)
@option("--config", "-c", type=EXISTING, required=True, help="The configuration to decide with.")
@option("--old", type=EXISTING, help="The configuration that made the log, for its prices and thresholds.")
@shown("--output-tokens", type=click.IntRange(0), default=300, help="Tokens of an answer without usage.")
@shown("--examples", type=click.IntRange(0, 100_000), default=5, help="Flips to show.")
@options.bootstrap
@options.seed
@engine
@option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exit_statuses
def replay(
    log: Path,
    config: Path,
    old: Path | None,
    output_tokens: int,
    examples: int,
    replicates: int,
    seed: int,
    as_json: bool,
) -> None:
    """Decide the requests of a decision log again, under another configuration.

    \b
    LOG is a file, folder or pattern of telemetry.decision_log; it may be larger
    than memory. The policies read the facts and signals of the log. The
    encoder runs only for texts whose signals are missing, if their prompts
    were logged. A decision that needs anything else that the log lacks is
    counted and kept.
    """
    Redecider(load(config), load(old) if old else None)  # Raises before the log is read.
    found, settings = DecisionLog(log), (output_tokens, examples, replicates, seed)
    tally = _tally(config, old, 0, *settings)
    for state in found.map("deciding", _decided, config, old, *settings):
        tally.merge(state)
    report = tally.report() | {"unreadable": found.unreadable}
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    if found.unreadable:
        click.echo(f"note: {found.unreadable} lines are no records, such as {found.example}", err=True)
    for line in _lines(report):  # Clients wrote some of it: nothing of that controls the terminal.
        click.echo("".join(each if each.isprintable() else "?" for each in line))


def _tally(config: Path, old: Path | None, number: int, output: int, examples: int, *how: int) -> Tally:
    pools = load(old or config).config.pools, load(config).config.pools
    return Tally(pools, output, examples, how[0], (how[1], number))


def _decided(
    records: Iterator[Record], number: int, _: Path, config: Path, old: Path | None, *settings: int
) -> dict[str, Any]:
    """The tally of a bucket, whose traffic thresholds follow as those of a worker follow its own."""
    tally = _tally(config, old, number, *settings)
    redecider = Redecider(load(config), load(old) if old else None)
    for record in records:
        if not record.get("facts"):
            tally.keep("no policy decided")
            continue
        try:
            decision = redecider.decide(record)
        except (NotLogged, LookupError, AttributeError, TypeError, ValueError) as problem:
            lacks = isinstance(problem, (NotLogged, KeyError))
            tally.keep(f"the log lacks {problem}" if lacks else "the record is damaged")
            continue
        pool, reason = (decision.pool, decision.reason) if decision else (REFUSED, "no pool")
        tally.add(record, pool, reason)
    return tally.state()


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    agreement = report["agreement"]
    yield f"{report['decisions']:,} decisions, {report['decided_again']:,} decided again"
    yield from (f"  {count:,} kept: {why}"[:80] for why, count in report["kept"].items())
    if not report["decided_again"]:
        return
    yield f"{'agree':22}{_percent(agreement)}"
    yield ""
    yield f"{'pool':22}{'before':26}{'after'}"
    for name, sides in report["pools"].items():
        yield f"{_short(name, 20):22}{_percent(sides['before']):26}{_percent(sides['after'])}"
    if (dollars := report["dollars_per_thousand"]) is not None:
        before, after, change = (_dollars(dollars[each]) for each in ("before", "after", "difference"))
        yield f"{'dollars per 1,000':22}{before:26}{after}"
        yield f"{'  difference':22}{change}"
        estimated = report["dollars_rows"] - report["usage_rows"]
        yield f"  ({report['dollars_rows']:,} with prices; answers of {max(estimated, 0):,} are estimated)"
    if (latency := report["latency_ms"]) is not None:
        yield f"{'answer, ms':22}{latency['before']:<26,.0f}{latency['after']:,.0f}"
    if report["flips"]:
        yield ""
        yield "flips"
    for each in report["flips"]:
        pools = f"{_short(each['before'], 18)} to {_short(each['after'], 18)}"
        yield f"  {pools}: {each['count']:,}, {_percent(each)}"
    for each in report["examples"]:
        yield f"  {_short(each.get('request_id', '?'), 36)}: {each['before']} to {each['after']}"[:80]
        yield f"    {each['reason']}"[:80]
        if "prompt" in each:
            yield f"    {_short(' '.join(each['prompt'].split()), TEXT_CHARACTERS)}"


def _percent(figure: Mapping[str, float]) -> str:
    value, low, high = (100 * figure[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _dollars(figure: Mapping[str, Any]) -> str:
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@click.command()
@click.argument("file", type=EXISTING)
@click.argument("log", type=TABLE)
@option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exit_statuses
def outcomes(file: Path, log: Path, as_json: bool) -> None:
    """Add a file of outcomes to a decision log.

    \b
    FILE is .csv or .jsonl with request_id and score (0 to 1) or label (good or
    bad), and optionally source. LOG is the folder of telemetry.decision_log. The
    outcomes become one more file in it, which calibrate joins by request id. The
    same FILE again replaces them.
    """
    if not log.is_dir():
        raise DataError(f"{log}:1:: expected the folder of a decision log")
    table = read_table(file)
    lines = []
    for row in range(len(table)):
        given = {name: value for name in table.columns if (value := table.field(name, row))}
        try:
            report = msgspec.convert(given, Report, strict=False)
        except ValueError as error:
            raise table.error("", str(error), row) from None
        lines.append(msgspec.json.encode(of_outcome(report.event(""), file.stat().st_mtime)) + b"\n")
    write_whole(log / f"outcomes-{table.sha256[:12]}.jsonl", lambda stream: stream.writelines(lines))
    found = DecisionLog(log)
    joined: dict[str, list[float]] = {}
    for counts in found.map("joining", _outcomes):
        for pool, (count, total) in counts.items():
            counted = joined.setdefault(pool, [0, 0.0])
            counted[0] += count
            counted[1] += total
    summary: dict[str, Any] = {
        "outcomes": len(lines),
        "decisions": found.count,
        "joined": {
            pool: {"count": count, **share(total, count)} for pool, (count, total) in sorted(joined.items())
        },
    }
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    click.echo(f"{len(lines):,} outcomes are in the log now")
    click.echo(f"{'pool':22}{'outcomes':>10}  mean")
    for pool, each in sorted(summary["joined"].items()):
        click.echo(f"{_short(pool, 20):22}{each['count']:>10,}  {_percent(each)}")


def _outcomes(records: Iterator[Record], *_: object) -> dict[str, tuple[int, float]]:
    """Pool to the number of outcomes and their sum."""
    found: dict[str, tuple[int, float]] = {}
    for record in records:
        if "outcome" in record:
            count, total = found.get(pool := record.get("pool", ""), (0, 0.0))
            found[pool] = count + 1, total + record["outcome"]
    return found
