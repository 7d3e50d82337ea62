"""Every pinned package has a version, hashes and a license that its use allows, and the audit can fail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import stat
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem != "licenses")
RECORDED = {
    name: (version, license_)
    for name, version, license_ in re.findall(
        r"^(\S+?)==(\S+) (.+)$", (REQUIREMENTS / "licenses.txt").read_text(), re.M
    )
}

PERMISSIVE = {
    *(
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CNRI-Python",
        "ISC",
        "MIT",
    ),
    *("MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib"),
}
ALLOWED = {
    # The image, and what a developer installs: permissive, or copyleft for the package's own files only.
    **dict.fromkeys(("runtime", "build", "demo", "dev", "audit"), PERMISSIVE | {"MPL-2.0"}),
    "gpu": PERMISSIVE | {"MPL-2.0", "LicenseRef-NVIDIA-Proprietary"},
    # Only the tests against real servers install these, and nothing of them is passed on.
    **dict.fromkeys(("triton", "mlserver"), PERMISSIVE | {"MPL-2.0", "ZPL-2.1"}),
    "vllm": PERMISSIVE
    | {"MPL-2.0", "LGPL-2.1-only", "LicenseRef-BSD-derived", "LicenseRef-Intel-Developer-Tools"},
}
"""Lock to the licenses that its packages may have."""


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply", ROOT / "tools" / "supply.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUPPLY = tool()


def licenses_in(expression: str) -> set[str]:
    """The licenses of an SPDX expression; an exception only permits more."""
    return set(re.split(r" (?:AND|OR) ", re.sub(r" WITH \S+|[()]", "", expression)))


def test_every_lock_is_known_to_the_audit_and_has_allowed_licenses() -> None:
    assert set(LOCKS) == set(SUPPLY.LOCKS) == set(ALLOWED)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_an_exact_version_and_hashes(lock: str) -> None:
    text = (REQUIREMENTS / f"{lock}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", text, flags=re.M).strip())
    assert len(entries) > 5
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+", entry), entry.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert len(SUPPLY.pins(lock)) == len(entries)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_a_license_that_its_use_allows(lock: str) -> None:
    for name, _ in SUPPLY.pins(lock):
        assert name in RECORDED, f"{name}: run make licenses"
        assert licenses_in(RECORDED[name][1]) <= ALLOWED[lock], f"{name}: {RECORDED[name][1]}"


def test_the_licenses_are_those_of_the_pinned_versions() -> None:
    pinned = {pin for lock in LOCKS for pin in SUPPLY.pins(lock)}
    assert {(name, version) for name, (version, _) in RECORDED.items()} <= pinned, "run make licenses"


def test_the_licenses_are_those_that_the_installed_packages_state() -> None:
    checked = 0
    for name, (version, recorded) in RECORDED.items():
        try:
            found = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found["Version"] == version:
            package = {
                "name": name,
                "license": found["License"],
                "license_expression": found["License-Expression"],
                "classifier": found.get_all("Classifier") or (),
            }
            assert SUPPLY.license_of(package) == recorded, name
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("package", "license_"),
    [
        ({"license_expression": "MIT OR Apache-2.0", "license": "x"}, "MIT OR Apache-2.0"),
        ({"classifier": ["License :: OSI Approved :: MIT License", "Topic :: X"]}, "MIT"),
        ({"license": "Apache 2.0"}, "Apache-2.0"),
        ({"license": "BSD-3-Clause"}, "BSD-3-Clause"),
        ({"license": "Copyright (c) 2001\nAll rights reserved"}, "UNKNOWN"),
        ({}, "UNKNOWN"),
    ],
)
def test_a_license_is_read_from_what_a_package_states(package: dict[str, object], license_: str) -> None:
    assert SUPPLY.license_of({"name": "a", **package}) == license_


def test_packages_with_several_versions_are_audited_in_layers() -> None:
    layers = list(SUPPLY.layers(tuple(LOCKS)))
    flat = [pin for layer in layers for pin in layer.items()]
    assert sorted(flat) == sorted({pin for lock in LOCKS for pin in SUPPLY.pins(lock)})
    assert len(layers) > 1, "numpy has a version for each version of Python"


DATABASE = """\
#!{python}
import json, sys
lines = open(sys.argv[sys.argv.index("--requirement") + 1]).read().split()
if sys.argv[sys.argv.index("--vulnerability-service") + 1] != {service!r}:
    sys.exit("no such host")
bad = {bad!r}
found = [{{"id": "X-1", "description": "Bad.\\nMore."}}]
if {fails!r} in lines:
    sys.exit("timeout")
pairs = [(line, line.split("==")) for line in lines]
rows = [{{"name": pair[0], "version": pair[1], "vulns": found * (line in bad)}} for line, pair in pairs]
print(json.dumps({{"dependencies": rows}}))
"""


def audit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: str,
    bad: list[str],
    skip: bool,
    fails: str = "",
) -> int:
    """The audit's status with a database that knows `bad`, in place of the program that asks a real one."""
    program = tmp_path / "python"
    program.write_text(DATABASE.format(python=SUPPLY.sys.executable, service=service, bad=bad, fails=fails))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(SUPPLY.sys, "executable", str(program))
    return int(SUPPLY.audit(skip=skip))


def test_the_audit_fails_for_a_known_vulnerability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [version] = [version for name, version in SUPPLY.pins("runtime") if name == "grpcio"]
    bad = [SUPPLY.CONTROL, f"grpcio=={version}"]
    assert audit(tmp_path, monkeypatch, "osv", bad, skip=True) == 1
    assert capsys.readouterr().out == f"grpcio=={version} X-1: Bad.\n"


def test_the_audit_passes_only_if_the_database_knows_the_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit(tmp_path, monkeypatch, "pypi", [SUPPLY.CONTROL], skip=False) == 0


def test_a_database_that_stops_answering_is_not_taken_for_a_clean_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "==".join(SUPPLY.pins("runtime")[0])
    assert audit(tmp_path, monkeypatch, "pypi", [SUPPLY.CONTROL], skip=False, fails=fails) == 3


@pytest.mark.parametrize(("service", "bad"), [("none", ["pyyaml==5.3"]), ("pypi", [])])
def test_an_audit_without_a_database_fails_or_says_that_it_was_skipped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    service: str,
    bad: list[str],
) -> None:
    assert audit(tmp_path, monkeypatch, service, bad, skip=False) == 3
    assert "audit FAILED: no database" in capsys.readouterr().out
    monkeypatch.undo()
    assert audit(tmp_path, monkeypatch, service, bad, skip=True) == 0
    assert "audit SKIPPED: no database" in capsys.readouterr().out
