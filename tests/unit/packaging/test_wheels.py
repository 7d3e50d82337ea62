"""The wheels: what a gateway pod installs, what only a workstation needs, and what only a GPU needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import release

from semroute_extproc import __version__
from semroute_extproc.cli.envoy_file import FILES
from semroute_extproc.encoder import bundle

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(600)  # compressing the bundles takes ten seconds of an idle core


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all wheels, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    for place in release.PROJECTS.values():
        release.hatchling("wheel", ROOT / place, folder)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sidecar and the lab from their wheels; dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = [str(file) for name in ("semroute_extproc", "semroute_lab") for file in built.glob(f"{name}-*")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        *wheels,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(installed: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the installed `semroute`, away from the checkout."""
    command = [sys.executable, str(installed / "bin" / "semroute"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed), **settings}
    return subprocess.run(
        command, cwd=installed, env=environment, capture_output=True, text=True, check=False
    )


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


@pytest.mark.parametrize("name", release.PROJECTS)
def test_a_wheel_is_small_enough_for_a_package_index_and_has_no_tests(built: Path, name: str) -> None:
    [wheel] = built.glob(f"{name}-*.whl")
    assert release.archive_problems(wheel, set()) == []


def test_the_graph_for_a_gpu_is_only_in_the_wheel_that_its_extra_needs(built: Path) -> None:
    graph = f"semroute_extproc/models/{bundle.DEFAULT_BUNDLE}/model.fp16.onnx"
    found = {name: graph in names(built, name) for name in release.PROJECTS}
    assert found == {"semroute_extproc": False, "semroute_lab": False, "semroute_gpu_graphs": True}
    assert "Requires-Dist: semroute-gpu-graphs" in text(built, "semroute_extproc", "METADATA")


@pytest.mark.parametrize("name", release.PROJECTS)
def test_a_wheel_states_its_version_its_license_and_a_description(built: Path, name: str) -> None:
    metadata = text(built, name, "METADATA")
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n\n# " in metadata


def test_the_installed_command_says_its_version_and_has_the_labs_commands(installed: Path) -> None:
    assert run(installed, "--version").stdout == f"semroute, version {__version__}\n"
    assert run(installed, "demo", "--help").stdout.startswith("Usage: semroute demo")


def test_the_installed_command_reads_a_text_with_the_bundle_of_its_own_wheel(installed: Path) -> None:
    (installed / "semroute.yaml").write_text(run(installed, "example").stdout)
    ran = run(installed, "explain", "-c", "semroute.yaml", "--text", "Prove that 2 + 2 = 4.", "--json")
    assert json.loads(ran.stdout)["signals"]["domain"], ran.stderr


def test_the_installed_bundle_is_verified_and_exported_without_the_graph_for_a_gpu(installed: Path) -> None:
    path = f"{installed}/semroute_extproc/models/{bundle.DEFAULT_BUNDLE}"
    verified = run(installed, "bundle", "verify").stdout
    assert verified.startswith(f"{path}: 3 files as listed")
    assert verified.endswith("model.fp16.onnx is missing\n")
    exported = run(installed, "bundle", "export", path, "repository", "--for", "triton")
    assert exported.returncode == 0, exported.stderr
    refused = run(installed, "bundle", "export", path, "repository", "--for", "triton", "--device", "cuda")
    assert "semroute-extproc[gpu]" in refused.stderr


def test_a_gpu_without_its_graph_is_refused_with_what_to_install(installed: Path) -> None:
    (installed / "semroute.yaml").write_text(run(installed, "example").stdout)
    ran = run(installed, "check", "semroute.yaml", SEMROUTE__ENCODER__DEVICE="cuda")
    assert "model.fp16.onnx: no such file" in ran.stderr
    assert "semroute-extproc[gpu]" in ran.stderr
