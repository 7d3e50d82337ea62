"""The environment of the tests against real vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
GOOD = "processor : 0\nflags\t\t: fpu sse2 avx avx2\n"


@pytest.fixture(scope="module")
def env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_env", ROOT / "tools" / "vllm_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_machine_with_avx2_will_do(env: ModuleType) -> None:
    assert env.unfit("Linux", "x86_64", (3, 11), GOOD) == ""


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (("Darwin", "arm64", (3, 11), ""), "Darwin on arm64"),
        (("Linux", "aarch64", (3, 11), GOOD), "Linux on aarch64"),
        (("Linux", "x86_64", (3, 13), GOOD), "this is 3.13"),
        (("Linux", "x86_64", (3, 11), "flags : fpu sse2 avx\n"), "AVX2"),
        (("Linux", "x86_64", (3, 11), ""), "AVX2"),
    ],
)
def test_any_other_is_told_why_not(
    env: ModuleType, machine: tuple[str, str, tuple[int, int], str], says: str
) -> None:
    assert says in env.unfit(*machine)


def test_the_lock_pins_vllm_and_torchs_cpu_build_and_none_of_the_builds_for_cuda(env: ModuleType) -> None:
    lock = env.LOCK.read_text()
    assert env.torch_pin(lock).startswith("torch==2.13.0+cpu \\\n    --hash=sha256:")
    assert "\nvllm-cpu==0.32.0 \\\n" in lock
    assert not [line for line in lock.splitlines() if line.startswith(("triton", "nvidia", "torchvision"))]
    with pytest.raises(ValueError, match="no torch"):
        env.torch_pin("numpy==1 \\\n    --hash=sha256:00\n")
