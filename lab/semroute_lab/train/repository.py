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
MLSERVER = {
    "version/semroute_runtime.py": "mlserver.py",
    "version/model-settings.json": "",
    "settings.json": "",
}
FILES = {
    "triton": {"version/model.py": "triton.py", "config.pbtxt": ""},
    "mlserver": MLSERVER,
    "kserve": {**MLSERVER, "inferenceservice.yaml": ""},
}
"""Server to its files, and what each is made from; by default the template of its name. `config.pbtxt` is per
model, `version/` per version, and the others are per repository."""


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
    outputs = onnx.load(graph, load_external_data=False).graph.output
    facts: dict[str, Any] = {
        "name": manifest.name,
        "version": bundle.model_version,
        "server": server,
        "device": device,
        "graph": graph.name,
        "outputs": {output.name: described[output.name] for output in outputs},
        "surface": len(manifest.surface),
        "pad_id": manifest.encoder.pad_id,
        "lengths": [] if on_cpu else padded_lengths(manifest.encoder.window),
        "disabled_optimizers": SLOW_ON_CPU if on_cpu else [],
        "threads": threads if on_cpu else 1,
        "texts_max": texts_max or (1 if on_cpu else BATCH_MAX),
    }
    version.parent.mkdir(parents=True, exist_ok=True)
    loader = FileSystemLoader(SERVING)
    templates = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    with tempfile.TemporaryDirectory(dir=target) as name:
        folder = Path(name, "version")  # complete before the server sees it
        folder.mkdir()
        unused = {"tokenizer.json", manifest.unknown.centroids, *manifest.graphs.values()} - {graph.name}
        for file in manifest.files.keys() - unused:
            shutil.copyfile(bundle.path / file, folder / file)
        (folder / "graph.json").write_text(json.dumps(facts, indent=2) + "\n")
        for path, source in {"version/graph.py": "graph.py", "README.md": "", **FILES[server]}.items():
            place = {"version": Path(name), "config.pbtxt": version.parent}.get(path.split("/")[0], target)
            (place / path).write_text(templates.get_template(source or f"{Path(path).name}.j2").render(facts))
        folder.rename(version)
    return sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
