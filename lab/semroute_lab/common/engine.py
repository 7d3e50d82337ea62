"""Runs a function over the parts of an input: on the cores of this machine, or on a Ray cluster.

A result is plain data, kept as a file in the work folder. Results are combined in the order of the parts, so
every engine gives the same figures; and a run that was killed goes on after the parts that have a result.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import msgspec

from semroute_extproc.errors import DataError
from semroute_extproc.io.cores import usable_cores
from semroute_lab.common.options import progress, shown, stacked
from semroute_lab.common.writing import write_whole

MIB = 1024**2
MEMORY_MIB = 256  # Data of one part; a process takes up to about four times as much, and its libraries

Tick = Callable[[float], object]  # Takes the share of a part that was done since the last call
Part = tuple[Any, ...]  # Plain arguments of the function
_META = "semroute_lab.engine"


@dataclass(frozen=True)
class Engine:
    """Where parts run, how large they are, and where their results are kept."""

    address: str = "local"  # `local`, `ray`, or the `ray://HOST:PORT` of a cluster
    work: Path | None = None  # For Ray a folder that all machines share; None: a temporary one
    memory: int = MEMORY_MIB * MIB  # Most bytes of a part

    @classmethod
    def current(cls) -> Engine:
        """That of the running command."""
        context = click.get_current_context(silent=True)
        if context is None:
            return _DEFAULT
        given = context.meta.setdefault(_META, {})
        if not isinstance(given, cls):
            if given.get("address", "local") != "local" and given.get("work") is None:
                raise click.UsageError("--engine ray needs --work, a folder that all machines share")
            context.meta[_META] = given = cls(**given)
        return given

    @cached_property
    def folder(self) -> Path:
        """The work folder."""
        if self.work is not None:
            return self.work.absolute()
        made = tempfile.mkdtemp(prefix="semroute-")
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return Path(made)

    def run(
        self,
        what: str,
        read: Callable[..., Any],
        parts: Sequence[Part],
        function: Callable[..., Any],
        given: Part = (),
        files: Sequence[Path] = (),
    ) -> Iterator[Any]:
        """`function(read(*part, tick), number, folder, *given)` of each part, in order. Raises DataError.

        `folder` is for its files, and `what` names the progress bar. Results of an earlier run are taken if
        all arguments are the same and neither `files` nor those in `given` changed.
        """
        used = [*files, *(each for each in given if isinstance(each, Path) and each.is_file())]
        stamps = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in used]
        names = [(each.__module__, each.__qualname__) for each in (read, function)]
        key = hashlib.blake2b(repr((names, self.memory, parts, given, stamps)).encode(), digest_size=8)
        folder = self.folder / f"{what}-{key.hexdigest()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        results = [folder / f"{number}.msgpack" for number in range(len(parts))]
        calls = [
            (read, part, function, number, given, result)
            for number, (part, result) in enumerate(zip(parts, results, strict=True))
            if not result.exists()
        ]
        with progress(what, len(parts)) as advance:
            advance(len(parts) - len(calls))
            if self.address != "local" and calls:
                for _ in _on_ray(self.address, calls):
                    advance()
            elif len(calls) < 2 or usable_cores() == 1:
                for call in calls:
                    _call(*call, advance)
            else:
                cores, spawn = min(usable_cores(), len(calls)), multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(cores, spawn) as pool:
                    for done in as_completed([pool.submit(_call, *call) for call in calls]):
                        done.result()
                        advance()
        for result in results:
            found = msgspec.msgpack.decode(result.read_bytes())
            if "error" in found:
                result.unlink()
                raise DataError(found["error"])
            yield found["value"]


_DEFAULT = Engine()


def _call(
    read: Callable[..., Any],
    part: Part,
    function: Callable[..., Any],
    number: int,
    given: Part,
    result: Path,
    tick: Tick = lambda _: None,
) -> None:
    """Keep the function's result, or its DataError, which a cluster would wrap in other errors."""
    try:
        found = {"value": function(read(*part, tick), number, result.parent, *given)}
    except DataError as error:
        found = {"error": str(error)}
    data = msgspec.msgpack.encode(found)
    write_whole(result, lambda file: file.write(data))


def _on_ray(address: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[object]:
    """Run every call on a cluster, one to a core."""
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(None if address == "ray" else address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items(list(range(len(calls))), override_num_blocks=len(calls))

    def call(row: dict[str, int]) -> dict[str, int]:
        _call(*calls[row["item"]])
        return row

    yield from rows.map(call).iter_rows()


def _keep(name: str) -> Callable[..., None]:
    def keep(context: click.Context, _: object, value: Any) -> None:
        context.meta.setdefault(_META, {})[name] = value * MIB if name == "memory" else value

    return keep


def _setting(flag: str, **how: Any) -> Any:
    return shown(flag, expose_value=False, callback=_keep(flag[2:].replace("engine", "address")), **how)


engine = stacked(
    _setting("--engine", default="local", metavar="local|ray|ray://…", help="Where the work runs."),
    _setting("--work", type=click.Path(file_okay=False, path_type=Path), help="Partial results, to resume."),
    _setting("--memory", type=click.IntRange(1), default=MEMORY_MIB, help="MiB of data per process."),
)
