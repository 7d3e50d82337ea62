"""What is released, built and then installed into empty environments; `make test-release` runs this.

Only dependencies come from the package index. Takes minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not os.environ.get("SEMROUTE_RELEASE"), reason="takes minutes: make test-release"),
    pytest.mark.timeout(3600),
]
EPOCH = "1700000000"
LOAD = "from semroute_extproc.encoder import bundle; bundle.load(bundle.default_bundle(), ('cuda',))"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdists and wheels of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        release.build(folder)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` without this environment's variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_another_copy_of_the_checkout_gives_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    for name in release.git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "copy" / name)
    release.build(tmp_path / "again", root=tmp_path / "copy")
    first, second = ({f.name: release.digest(f) for f in d.iterdir()} for d in (built, tmp_path / "again"))
    assert len(first) == 2 * len(release.PROJECTS)
    assert first == second


def test_every_archive_is_small_and_holds_only_what_belongs_into_it(built: Path) -> None:
    tracked = set(release.git("ls-files").splitlines())
    assert [each for file in built.iterdir() for each in release.archive_problems(file, tracked)] == []


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_an_empty_environment_runs_the_demo(built: Path, tmp_path: Path, kind: str) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    files = {name: str(file) for name in release.PROJECTS for file in built.glob(f"{name}-*.{kind}")}
    wanted = [f"{files['semroute_extproc']}[cpu]", f"{files['semroute_lab']}[demo]"]
    pip = [str(binaries / "pip"), "install", "--quiet"]
    installed = run([*pip, *wanted], tmp_path)
    assert installed.returncode == 0, installed.stderr
    checked = run([str(binaries / "pip"), "check"], tmp_path)
    assert checked.returncode == 0, checked.stdout

    ran = run([str(binaries / "semroute"), "demo", "--once", "--json"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["summary"]
    assert summary["ok"]

    refused = run([str(binaries / "python"), "-c", LOAD], tmp_path)
    assert "semroute-extproc[gpu]" in refused.stderr
    run([*pip, "--no-deps", files["semroute_gpu_graphs"]], tmp_path)
    assert run([str(binaries / "python"), "-c", LOAD], tmp_path).returncode == 0


def test_the_tests_in_the_sdist_pass_there(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("semroute_extproc-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    # The current folder comes first in the path, so the tests import the unpacked package.
    ran = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], unpacked)
    assert ran.returncode == 0, ran.stdout
