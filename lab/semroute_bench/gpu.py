"""What the encoder does on a device: `python -m semroute_bench.gpu`, for the operator of a GPU.

Opens the bundle's graph on the device and fails if ONNX Runtime would use another one. Compares its signals
with the CPU's, times passes by shape, and sends decisions through a sidecar that runs on it.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import click
import numpy as np
import uvloop
from rich.console import Console
from semroute_demo.process import ProcessError

from semroute_bench import load, measuring, report
from semroute_bench.measuring import Figures, Samples, Size, quantiles
from semroute_bench.servers import UNHURRIED, Measured, Target
from semroute_bench.sidecar import default_model
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import BATCH_MAX, open_model
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.errors import BundleError, ConfigError

GPU = "gpu"
AT_ONCE = 64  # requests under way at a time, for the row of `semroute bench`
LEVELS = (1, 16, AT_ONCE, 256)  # requests under way at a time
TEXTS, TOKENS = (1, 8, 32, BATCH_MAX), (16, 64, 128)  # of a pass
COMPARED = 256  # texts whose signals are compared


async def measure(size: Size, folder: Path) -> Figures:
    """Decisions per second and their times on a CUDA device; raises ProcessError without one."""
    [row] = await _rates(size, folder, "cuda", [AT_ONCE])
    return {GPU: row}


async def _rates(size: Size, folder: Path, device: Device, levels: Sequence[int]) -> list[dict[str, Any]]:
    """One row per level of concurrency, of a sidecar on `device`."""
    request, rows = load.exchange(load.chat(load.ROUTED)), []
    settings = {**UNHURRIED, "encoder__device": device, "encoder__queue_max": "1024"}
    async with AsyncExitStack() as exits:
        target = await Target.of(Measured(folder / GPU, **settings), exits)
        await target.send(request, AT_ONCE, AT_ONCE)
        for level in levels:
            samples = Samples()
            answers = await target.measure(samples, GPU, request, size.gpu_requests, level)
            decided = sum(answer.outcome == "routed" for answer in answers) / len(answers)
            times = quantiles([answer.ms for answer in answers])
            rate = samples[f"{GPU} a second"][0]
            rows.append({"at once": level, "a second": rate, "decided": decided, "ms": times})
    return rows


def passes(model: OnnxModel, count: int) -> list[dict[str, Any]]:
    """One row per shape: milliseconds of a pass, with framing left out, and texts per second."""
    rows = []
    for tokens in TOKENS:
        framed = model.framer.frame(load.prompt_of(model.framer, tokens))
        for texts in _texts(model):
            seconds = []
            for _ in range(count):
                started = perf_counter()
                model.run([framed] * texts)
                seconds.append(perf_counter() - started)
            cuts = quantiles([each * 1e3 for each in seconds[1:]])  # the first plans the shape's memory
            row = {"tokens": tokens, "texts": texts, "p50": cuts["p50"], "p99": cuts["p99"]}
            rows.append({**row, "a second": texts / fmean(seconds[1:])})
    return rows


def agreement(model: OnnxModel, reference: OnnxModel, texts: int = COMPARED) -> dict[str, float]:
    """How far the outputs of two models are apart, over texts of many lengths, in the largest passes."""
    words, most = load.LONG.split(), _texts(model)[-1]
    framed = [model.framer.frame(" ".join(words[n : n + 1 + n * 7 % 160])) for n in range(texts)]
    ours = [output for n in range(0, texts, most) for output in model.run(framed[n : n + most])]
    pairs = list(zip(ours, (reference.run([each])[0] for each in framed), strict=True))
    return {
        "texts": texts,
        "same domain": fmean(a.domain_logits.argmax() == b.domain_logits.argmax() for a, b in pairs),
        "least cosine": min(_cosine(a.embedding, b.embedding) for a, b in pairs),
        "difficulty logit apart": max(abs(a.difficulty_logit - b.difficulty_logit) for a, b in pairs),
    }


def _texts(model: OnnxModel) -> Sequence[int]:
    """Texts per pass. On the CPU the scales of the int8 graph are a pass's, so each text has its own."""
    return (1,) if model.device == "cpu" else TEXTS


def _cosine(one: Any, other: Any) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def run(size: Size, folder: Path, device: Device) -> Figures:
    """All figures of `device`; raises ConfigError or BundleError if the graph does not run on it."""
    model = open_model(bundle.load(bundle.default_bundle(), (device, "cpu")), device)
    found: Figures = {"machine": measuring.describe(), "device": device, "provider": model.provider}
    found |= {"agreement": agreement(model, default_model()), "passes": passes(model, size.passes)}
    del model  # its memory is needed by the sidecar
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found["rates"] = runner.run(_rates(size, folder, device, LEVELS))
    return found


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for gpu.json.")
@click.option("--quick", is_flag=True, help="Fewer passes and requests.")
def main(device: Device, out: Path | None, quick: bool) -> None:
    """Prove and measure the encoder on a device; about two minutes on a GPU."""
    with tempfile.TemporaryDirectory(prefix="semroute-gpu-") as folder:
        try:
            found = run(measuring.QUICK if quick else Size(), Path(folder), device)
        except (BundleError, ConfigError, ProcessError) as error:
            raise click.ClickException(str(error)) from None
    Console().print(*report.device_tables(found), sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
