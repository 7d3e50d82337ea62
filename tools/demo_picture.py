"""Draw docs/demo.svg from a run of the demo on this machine."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from semroute_demo import client

TARGET = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"
WITHOUT_FONTS = re.sub(r"<!-- .*? -->|@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)
"""The library's picture without fonts from elsewhere: it must draw offline."""

ROWS_MAX = 8
"""Number of rows of each group in the picture."""


def main() -> int:
    """Run the demo once and write the picture."""
    command = [sys.executable, "-m", "semroute_extproc", "demo", "--once", "--json"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    *rows, last = [json.loads(line) for line in lines]
    console = Console(record=True, width=150, file=io.StringIO())
    groups = itertools.groupby(rows, lambda row: row["group"])
    console.print(
        client.table([row for _, group in groups for row in itertools.islice(group, ROWS_MAX)], 150)
    )
    console.print(client.summary_text(last))
    picture = console.export_svg(title="make demo", code_format=WITHOUT_FONTS)
    TARGET.write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
