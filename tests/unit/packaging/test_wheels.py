"""The two wheels: what a gateway pod installs, and what only a workstation needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from semroute_extproc.cli.envoy_file import FILES
from semroute_extproc.encoder import bundle

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both wheels, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "lab"):
        command = [
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "--target",
            "wheel",
            "--directory",
            str(folder),
        ]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    return folder


def names(folder: Path, distribution: str) -> set[str]:
    [wheel] = folder.glob(f"{distribution}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def text(folder: Path, distribution: str, suffix: str) -> str:
    [wheel] = folder.glob(f"{distribution}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(suffix)]
        return archive.read(name).decode()


def test_the_sidecars_wheel_has_its_package_and_the_bundles_and_nothing_else(built: Path) -> None:
    found = names(built, "semroute_extproc")
    tops = {name.partition("/")[0] for name in found if ".dist-info/" not in name}
    assert tops == {"semroute_extproc"}
    for wanted in (
        "cli/example.yaml",
        "cli/envoy_check.toml",
        *(f"cli/{name}.j2" for name in FILES.values()),
        *(f"cli/{name}" for name in ("unlikely.toml", "live.toml", "status.txt", "logs.txt", "warnings.txt")),
        f"models/{bundle.DEFAULT_BUNDLE}/bundle.json",
        "py.typed",
    ):
        assert f"semroute_extproc/{wanted}" in found


def test_the_sidecars_wheel_has_no_simulated_pools_prompts_benchmarks_or_training(built: Path) -> None:
    rooms = {name.split("/")[1] for name in names(built, "semroute_extproc") if name.count("/") > 1}
    assert rooms.isdisjoint({"demo", "bench", "training", "train", "fit", "evaluate", "profile"})


def test_the_labs_wheel_has_its_packages_and_the_demos_file(built: Path) -> None:
    found = names(built, "semroute_lab")
    tops = {name.partition("/")[0] for name in found if ".dist-info/" not in name}
    assert tops == {"semroute_lab", "semroute_demo", "semroute_bench"}
    assert "semroute_demo/semroute.yaml" in found


def test_the_lab_adds_its_commands_by_entry_points_and_needs_the_sidecar(built: Path) -> None:
    entries = text(built, "semroute_lab", "entry_points.txt")
    assert "[semroute.commands]" in entries
    for command in ("demo", "train", "fit", "calibrate", "eval", "profile", "bench"):
        assert f"\n{command} = " in entries
    assert "Requires-Dist: semroute-extproc" in text(built, "semroute_lab", "METADATA")
    assert "semroute-lab" not in text(built, "semroute_extproc", "METADATA")
