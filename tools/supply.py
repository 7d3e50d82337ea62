"""Known vulnerabilities, licenses and a bill of materials of what the project pins.

    python tools/supply.py audit       # look for known vulnerabilities in every file of requirements/;
                                       # with --or-skip it is no failure if no database can be reached
    python tools/supply.py licenses    # write requirements/licenses.txt
    python tools/supply.py sbom DIR    # write DIR/sbom.json (CycloneDX) and DIR/licenses.md of the image

Runs in the environment of requirements/audit.txt: see `make audit`, `make licenses` and `make sbom`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LICENSES = REQUIREMENTS / "licenses.txt"
LOCKS = ("runtime", "gpu", "build", "demo", "dev", "audit", "vllm", "triton", "mlserver")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.M)

CONTROL = "pyyaml==5.3"
"""A package with known vulnerabilities: a database that does not report it says nothing about the others."""
SERVICES = ("pypi", "osv")  # of pip-audit
IGNORED: dict[str, str] = {}
"""Vulnerability to the reason why it does not concern us."""

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
SPELLED = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "MIT License": "MIT",
}
STATED = {
    "atheris": "Apache-2.0",
    "oss-harmony": "Apache-2.0",
    "py-grpc-prometheus": "Apache-2.0",
    "setuptools": "MIT",
    "supervisor": "LicenseRef-BSD-derived",
    "tiktoken": "MIT",
    "intel-openmp": "LicenseRef-Intel-Developer-Tools",
    "intel-cmplr-lib-ur": "LicenseRef-Intel-Developer-Tools",
}
"""Package whose metadata does not name its license in a known way, to what its license file says."""


def pins(lock: str) -> list[tuple[str, str]]:
    """Name and version of every package of a lock; a name may have a version for each platform."""
    text = (REQUIREMENTS / f"{lock}.txt").read_text()
    return [(name.lower(), version) for name, version in PIN.findall(text)]


def layers(locks: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The packages of locks as name to version, without repetition."""
    left = sorted({pin for lock in locks for pin in pins(lock)})
    while left:
        layer = dict(reversed(left))
        yield layer
        left = [pin for pin in left if layer[pin[0]] != pin[1]]


def audit(skip: bool) -> int:
    """0 without a known vulnerability, 1 with one, 3 (or 0 to skip) if no database can be asked."""
    service = next((each for each in SERVICES if report([CONTROL], each)), "")
    wanted = [[f"{name}=={version}" for name, version in layer.items()] for layer in layers(LOCKS)]
    reports = [report(packages, service) if service else None for packages in wanted]
    if None in reports:
        print(f"audit {'SKIPPED' if skip else 'FAILED'}: no database of vulnerabilities can be reached")  # noqa: T201
        return 0 if skip else 3
    found = [line for lines in reports for line in lines or () if line.split()[1] not in IGNORED]
    print("\n".join(found) or f"audit: no known vulnerability ({service})")  # noqa: T201
    return 1 if found else 0


def report(packages: list[str], service: str) -> list[str] | None:
    """A line for each known vulnerability, `name==version ID: summary`; None without an answer."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages))
        file.flush()
        command = [
            *(sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off"),
            *("--format", "json", "--vulnerability-service", service, "--requirement", file.name),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        audited = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return None
    return [
        f"{each['name']}=={each['version']} {one['id']}: {one['description'].strip().partition(chr(10))[0]}"
        for each in audited
        for one in each.get("vulns", ())
    ]


def metadata(packages: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The metadata of packages, from the index, without installing them."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(f"{name}=={version}" for name, version in packages.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--no-deps", "--ignore-requires-python", "--report", str(report), "-r", str(wanted)]
        subprocess.run(command, check=True)
        yield from (each["metadata"] for each in json.loads(report.read_text())["install"])


def license_of(package: dict[str, Any]) -> str:
    """The SPDX expression of a package's metadata; `UNKNOWN` if it has none that we understand."""
    name = re.sub("[-_.]+", "-", package["name"]).lower()
    if found := STATED.get(name) or package.get("license_expression"):
        return str(found)
    stated = [each.split(" :: ") for each in package.get("classifier", ())]
    ends = [parts[-1] for parts in stated if parts[0] == "License"]
    if known := sorted({CLASSIFIERS[end] for end in ends if end in CLASSIFIERS}):
        return " OR ".join(known)
    words = str(package.get("license") or "").strip()
    return SPELLED.get(words) or (words if re.fullmatch(r"[A-Za-z0-9.+() -]{3,60}", words) else "UNKNOWN")


def write_licenses() -> int:
    """Write the license of every pinned package; of several versions, that of the lowest."""
    lines = [
        f"{re.sub('[-_.]+', '-', each['name']).lower()}=={each['version']} {license_of(each)}"
        for each in metadata(next(layers(LOCKS)))
    ]
    LICENSES.write_text("# Written by `make licenses`; tests/unit/packaging/test_supply.py checks it.\n")
    with LICENSES.open("a") as file:
        file.write("\n".join(sorted(lines)) + "\n")
    return 0


def sbom(folder: Path) -> int:
    """Install the image's lock into an empty environment, and write what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=False)
        python, lock = f"{place}/bin/python", str(REQUIREMENTS / "runtime.txt")
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*pip, "--require-hashes", "-r", lock], check=True)
        command = [
            *(
                sys.executable,
                "-m",
                "cyclonedx_py",
                "environment",
                "--pyproject",
                str(ROOT / "pyproject.toml"),
            ),
            *("--mc-type", "application", "--output-reproducible", "--of", "JSON"),
        ]
        subprocess.run([*command, "-o", str(folder / "sbom.json"), python], check=True)
    rows = ["| package | version | license |", "|---|---|---|"]
    recorded = dict(re.findall(r"^(\S+)==\S+ (.+)$", LICENSES.read_text(), re.M))
    for each in json.loads((folder / "sbom.json").read_text())["components"]:
        name = re.sub("[-_.]+", "-", each["name"]).lower()
        rows.append(f"| {each['name']} | {each['version']} | {recorded[name]} |")
    (folder / "licenses.md").write_text("\n".join(rows) + "\n")
    return 0


def main() -> int:
    """Run the named task."""
    match sys.argv[1:]:
        case ["audit", *options] if options in ([], ["--or-skip"]):
            return audit(skip=bool(options))
        case ["licenses"]:
            return write_licenses()
        case ["sbom", folder]:
            return sbom(Path(folder))
    print(__doc__)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
