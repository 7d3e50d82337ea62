"""`make release`: one version, a dated section of the changelog, and archives without stray files."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).resolve().parents[3]


def test_every_place_states_the_version_of_the_package() -> None:
    assert release.stale_versions() == []


def test_a_place_that_was_forgotten_is_named(tmp_path: Path) -> None:
    for name in (*release.VERSIONS, "semroute_extproc/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "semroute_extproc/__init__.py").write_text('__version__ = "9.9.9"\n')
    found = {problem.partition(":")[0] for problem in release.stale_versions(tmp_path)}
    assert found == set(release.VERSIONS)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("## [Unreleased]\n\n## [1.0.0] - 2026-11-30\n\n### Added\n\n- A.\n\n## [0.9.0] - 2026-01-01\n", []),
        ("## [Unreleased]\n\n- A.\n", ["no section [1.0.0]"]),
        ("## [1.0.0]\n\n- A.\n", ["write [1.0.0] - YYYY-MM-DD"]),
        ("## [1.0.0] - 2026-13-01\n\n- A.\n", ["write [1.0.0] - YYYY-MM-DD"]),
        ("## [1.0.0] - 2026-11-30\n\n## [0.9.0] - 2026-01-01\n\n- A.\n", ["[1.0.0] is empty"]),
        ("## [Unreleased]\n\n- B.\n\n## [1.0.0] - 2026-11-30\n\n- A.\n", ["move what is under [Unreleased]"]),
    ],
)
def test_a_version_needs_a_dated_section_that_has_all_its_changes(text: str, problems: list[str]) -> None:
    found = release.changelog_problems(text, "1.0.0")
    assert len(found) == len(problems)
    assert all(part in whole for part, whole in zip(problems, found, strict=True))


def test_a_wheel_with_tests_or_another_package_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "semroute_lab-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "semroute_lab/a.py",
            "semroute_lab/tests/a.py",
            "tools/a.py",
            "semroute_lab-1.dist-info/RECORD",
        ):
            archive.writestr(name, "")
    assert release.archive_problems(wheel, set()) == [
        f"{wheel.name}: semroute_lab/tests/a.py does not belong into it",
        f"{wheel.name}: tools does not belong into it",
    ]


def test_an_sdist_with_a_file_that_git_does_not_track_is_refused(tmp_path: Path) -> None:
    sdist = tmp_path / "semroute_lab-1.0.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("PKG-INFO", "pyproject.toml", "notes.txt"):
            archive.addfile(tarfile.TarInfo(f"semroute_lab-1.0.0/{name}"))
    assert release.archive_problems(sdist, {"lab/pyproject.toml", "notes.txt"}) == [
        f"{sdist.name}: notes.txt does not belong into it"
    ]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "semroute_lab-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("semroute_lab/a.py", "")
    [problem] = release.archive_problems(wheel, set(), bytes_max=50)
    assert "bytes are more than 50" in problem


def test_two_builds_of_the_lab_have_equal_bytes_wherever_and_whenever_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    lab, copy = {"semroute_lab": "lab"}, tmp_path / "copy"
    for name in ("lab", "semroute_extproc/__init__.py", "LICENSE", ".gitignore"):
        place = copy / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, place, ignore=ignored, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(ROOT / name, place)
    for file in copy.rglob("*.py"):
        os.utime(file, (1, 1))
        file.chmod(0o600)
    release.build(tmp_path / "one", lab)
    release.build(tmp_path / "two", lab, copy)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert len(one) == 2
    assert one == two


def test_the_labs_sdist_builds_a_wheel_with_the_license_and_no_tests(tmp_path: Path) -> None:
    release.build(tmp_path, {"semroute_lab": "lab"})
    [sdist], [wheel] = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in release.names(wheel))
    assert not any(name.startswith("tests/") for name in release.names(sdist))
