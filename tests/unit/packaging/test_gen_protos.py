"""The generator of the protocol code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_protos", ROOT / "tools" / "gen_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generator_names_missing_changed_and_leftover_files(tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("a")
    (tmp_path / "changed.pyi").write_text("b")
    (tmp_path / "leftover.py").write_text("c")
    wanted = {"same.py": "a", "changed.pyi": "B", "missing.py": "d"}
    assert generator().stale_files(wanted, tmp_path) == ["changed.pyi", "leftover.py", "missing.py"]


def test_the_generator_refuses_another_compiler_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator()
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "1.0.0")
    with pytest.raises(module.GenerationError, match=r"grpcio-tools 1\.81\.1 is needed .* found 1\.0\.0"):
        module.require_compiler()
