"""Build what a release publishes, and check it.

    python tools/release.py DIR

Builds the sdist of every distribution, and the wheel from the sdist, as an installer of the sdist would.
DIR must be absent or empty; SHA256SUMS in it lists the digests. The same commit gives the same bytes with
the same versions of hatchling and zlib: all files have the commit's time, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = {"semroute_extproc": ".", "semroute_lab": "lab", "semroute_gpu_graphs": "models"}
"""Name of the distribution's files to the folder of its pyproject.toml."""

PACKAGES = {
    "semroute_extproc": {"semroute_extproc"},
    "semroute_lab": {"semroute_lab", "semroute_demo", "semroute_bench"},
    "semroute_gpu_graphs": {"semroute_extproc"},
}
"""Distribution to what its wheel has at the top."""

BYTES_MAX = 100 * 10**6  # of a file
VERSIONS = {
    "charts/semroute/Chart.yaml": (r"^version: (.+)$", r'^appVersion: "(.+)"$'),
    "charts/semroute/README.md": (r"semroute-extproc:(\S+)", r"tag: (\S+?)-gpu"),
    "Dockerfile": (r"^ARG VERSION=(.+)$",),
    "pyproject.toml": (r"semroute-gpu-graphs==([^\"]+)",),
    "lab/pyproject.toml": (r"semroute-extproc==([^\"]+)",),
}
"""File to the patterns of the versions that it states, each of which must be the package's."""


def version(root: Path = ROOT) -> str:
    """The version, from the one place that defines it."""
    [found] = re.findall(r'^__version__ = "(.+)"$', (root / "semroute_extproc/__init__.py").read_text(), re.M)
    return str(found)


def stale_versions(root: Path = ROOT) -> list[str]:
    """The places that state another version, or none."""
    wanted, problems = version(root), []
    for name, patterns in VERSIONS.items():
        for pattern in patterns:
            found = re.findall(pattern, (root / name).read_text(), re.M)
            if not found or set(found) != {wanted}:
                problems.append(f"{name}: {pattern}: {found or 'no version'}, not {wanted}")
    return problems


def changelog_problems(text: str, wanted: str) -> list[str]:
    """What a changelog lacks for the release of a version: its section, a date, or notes under it alone."""
    sections = dict(re.findall(r"^## \[(.+?)\](.*\n(?:(?!## ).*\n?)*)", text, re.M))
    if wanted not in sections:
        return [f"CHANGELOG.md: no section [{wanted}]"]
    heading, _, notes = sections[wanted].partition("\n")
    problems = []
    try:
        date.fromisoformat(heading.removeprefix(" - "))
    except ValueError:
        problems.append(f"CHANGELOG.md: [{wanted}]{heading}: write [{wanted}] - YYYY-MM-DD")
    if not notes.strip():
        problems.append(f"CHANGELOG.md: [{wanted}] is empty")
    if sections.get("Unreleased", "").strip():
        problems.append(f"CHANGELOG.md: move what is under [Unreleased] to [{wanted}]")
    return problems


def build(folder: Path, projects: dict[str, str] = PROJECTS, root: Path = ROOT) -> None:
    """Write the sdist and the wheel of each project into `folder`."""
    for name, place in projects.items():
        hatchling("sdist", root / place, folder)
        [sdist] = folder.glob(f"{name}-*.tar.gz")
        with tempfile.TemporaryDirectory() as unpacked, tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
            hatchling("wheel", next(Path(unpacked).iterdir()), folder)


def hatchling(target: str, project: Path, folder: Path) -> None:
    """Build a project's sdist or wheel into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL)


def names(file: Path) -> set[str]:
    """The files in an archive; those of an sdist without its top folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return set(wheel.namelist())
    with tarfile.open(file) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


def archive_problems(file: Path, tracked: set[str], bytes_max: int = BYTES_MAX) -> list[str]:
    """What is wrong with an sdist or a wheel: its size, or files that should not be in it."""
    name, found, problems = file.name.partition("-")[0], names(file), []
    if (size := file.stat().st_size) > bytes_max:
        problems.append(f"{file.name}: {size:,} bytes are more than {bytes_max:,}")
    if file.suffix == ".whl":
        own = {each.partition("/")[0] for each in found if ".dist-info/" not in each}
        stray = (own - PACKAGES[name]) | {each for each in found if "/tests/" in each}
    else:
        place = PROJECTS[name]
        made = {"PKG-INFO", "LICENSE", ".gitignore"}  # by hatchling, or from the root
        stray = {each for each in found - made if os.path.normpath(f"{place}/{each}") not in tracked}
    return [*problems, *(f"{file.name}: {each} does not belong into it" for each in sorted(stray))]


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def git(*arguments: str) -> str:
    """The output of a git command in the checkout."""
    return subprocess.run(
        [shutil.which("git") or "git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def main() -> int:
    """Build and check into the folder that is named; 1 for a problem, and then there is no SHA256SUMS."""
    folder = Path(sys.argv[1]).resolve()
    problems = stale_versions() + changelog_problems((ROOT / "CHANGELOG.md").read_text(), version())
    if changed := git("status", "--porcelain"):
        problems.append(f"the checkout has changes:\n{changed}")
    if folder.exists() and any(folder.iterdir()):
        problems.append(f"{folder} is not empty")
    if not problems:
        os.environ.setdefault("SOURCE_DATE_EPOCH", git("log", "-1", "--format=%ct").strip())
        build(folder)
        tracked = set(git("ls-files").splitlines())
        problems = [each for file in folder.iterdir() for each in archive_problems(file, tracked)]
    if problems:
        sys.stderr.write("\n".join(problems) + "\n")
        return 1
    files = sorted(folder.iterdir())
    sums = [f"{digest(file)}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    sys.stdout.write("".join(f"{file.stat().st_size:>11,} {file.name}\n" for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
