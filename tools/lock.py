"""Pin requirements/*.txt, with hashes, from pyproject.toml.

One file an installation: `runtime` for the image, `demo` for `make demo`, `dev` for everything
else. The files name no package index: the installer's own is used.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ["hatchling", "editables"]
"""What an editable install of the package itself is built with."""

LOCKS = {
    "runtime": ["cpu", "http"],
    "gpu": ["gpu", "http"],
    "demo": ["cpu", "demo"],
    "dev": ["cpu", "demo", "test", "dev"],
}
"""Lock to the extras it pins."""


def main() -> int:
    """Compile every lock; returns the first failure's status."""
    build = ROOT / "requirements" / "build.in"
    build.write_text("\n".join(BUILD) + "\n")
    for name, extras in LOCKS.items():
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"),
            *("--python-version", "3.11", "--no-emit-index-url", "--no-annotate", "--no-header"),
            *(f"--extra={extra}" for extra in extras),
            *("--output-file", str(ROOT / "requirements" / f"{name}.txt")),
            *("pyproject.toml", str(build.relative_to(ROOT))),
        ]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
