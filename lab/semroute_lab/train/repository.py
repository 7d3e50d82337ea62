"""A bundle as a model repository of Triton, MLServer or KServe."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.cuda import BATCH_MAX, padded_lengths
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import SLOW_ON_CPU, widths
from semroute_extproc.errors import BundleError

SERVING = Path(__file__).parent / "serving"
RUNTIMES = {"triton": "model.py", "mlserver": "semroute_runtime.py", "kserve": "semroute_runtime.py"}
"""Kind of repository to the name that its server gives to the code of a model."""


def write_repository(
    bundle: Bundle, target: Path, server: str, device: Device, threads: int, texts_max: int | None
) -> list[str]:
    """Write `bundle` into the repository `target`, next to other versions; its files, relative to `target`.

    On a CPU, `threads` passes run at once, by default of one text each. Raises BundleError.
    """
    manifest, graph, on_cpu = bundle.manifest, bundle.graph(device), device == "cpu"
    version = target / manifest.name / bundle.model_version
    if version.exists():
        raise BundleError(f"{version}: this revision is there already")
    described = {**widths(manifest), "difficulty_logit": 1}
    names = [output.name for output in onnx.load(graph, load_external_data=False).graph.output]
    facts: dict[str, Any] = {
        "name": manifest.name,
        "revision": bundle.revision,
        "version": bundle.model_version,
        "server": server,
        "device": device,
        "graph": graph.name,
        "outputs": {name: described[name] for name in names},
        "surface": len(manifest.surface),
        "pad_id": manifest.encoder.pad_id,
        "lengths": [] if on_cpu else padded_lengths(manifest.encoder.window),
        "disabled_optimizers": SLOW_ON_CPU if on_cpu else [],
        "threads": threads if on_cpu else 1,
        "texts_max": texts_max or (1 if on_cpu else BATCH_MAX),
    }
    runtime = RUNTIMES[server]
    version.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as name:
        folder = Path(name, "version")  # complete before the server sees it
        folder.mkdir()
        unused = {"tokenizer.json", manifest.unknown.centroids, *manifest.graphs.values()} - {graph.name}
        for file in manifest.files.keys() - unused:
            shutil.copyfile(bundle.path / file, folder / file)
        shutil.copyfile(SERVING / "graph.py", folder / "graph.py")
        shutil.copyfile(SERVING / f"{'triton' if server == 'triton' else 'mlserver'}.py", folder / runtime)
        (folder / "graph.json").write_text(json.dumps(facts, indent=2) + "\n")
        _render({"model-settings.json": folder} if server != "triton" else {}, facts)
        folder.rename(version)
    pages = {"README.md": target, "config.pbtxt": version.parent}
    if server != "triton":
        pages = {"README.md": target, "settings.json": target}
    if server == "kserve":
        pages["inferenceservice.yaml"] = target
    _render(pages, facts)
    return sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())


def _render(pages: dict[str, Path], facts: dict[str, Any]) -> None:
    loader = FileSystemLoader(SERVING)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    for name, folder in pages.items():
        (folder / name).write_text(environment.get_template(f"{name}.j2").render(facts))
