"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from semroute_lab.common.tables import OLD_NAMES, OUTCOME, TEXT_COLUMNS
from semroute_lab.train.logs import COST

from semroute_extproc import __version__, outcome
from semroute_extproc.config.models import Config
from semroute_extproc.envoy import replies as mutations
from semroute_extproc.outcome import Cause
from semroute_extproc.pipeline import pipeline
from semroute_extproc.settings.controllers import SESSION_HEADERS
from semroute_extproc.strategies.registry import IDEAS
from semroute_extproc.telemetry.decision_log import POOLS_MAX, QUEUE_CHARACTERS_MAX, QUEUE_MAX
from semroute_extproc.telemetry.drift import BLOCK, BLOCKS
from semroute_extproc.telemetry.feedback import BURST_MAX, PER_SECOND_MAX

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *DOCS.rglob("*.md"),
    *ROOT.glob("*.md"),
    *(ROOT / "envoy").glob("*.md"),
    *(ROOT / "protos").glob("*.md"),
    *(ROOT / "charts").rglob("*.md"),
]


def test_the_generated_parts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_threat_model_names_tests_that_exist() -> None:
    """Every threat has a measure, and a test that proves it."""
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.M)
    }
    threats = (DOCS / "security.md").read_text().partition("\n## Threats\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in threats.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        assert len(row) == 4, row
        named = set(re.findall(r"`(test_\w+)`", row[3]))
        assert named, row
        assert named <= tests, named - tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_cause_is_documented() -> None:
    page = (DOCS / "errors.md").read_text()
    assert {cause for cause in Cause if f"`{cause}`" not in page} == set()


def test_every_metadata_key_is_documented() -> None:
    source = Path(outcome.__file__).read_text()
    keys = set(re.findall(r'found\["(\w+)"\]', source)) | set(re.findall(r'^        "(\w+)": ', source, re.M))
    page = (DOCS / "configuration.md").read_text()
    assert {"pool", "difficulty", "decision_ms"} <= keys
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_every_header_of_ours_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text()
    ours = (mutations.CLUSTER_HEADER, mutations.AFFINITY_HEADER)
    for header in (*ours, pipeline.QUALITY_HEADER, SESSION_HEADERS[0]):
        assert f"`{header}`" in page


def test_every_section_of_the_configuration_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text()
    for name in Config.model_fields:
        assert re.search(rf"`{name}\b", page), name


def test_every_strategy_has_its_idea_settings_curve_and_when_to_choose_it() -> None:
    page = (DOCS / "strategies.md").read_text()
    sections = {title: body for title, _, body in (part.partition("\n") for part in page.split("\n## "))}
    kinds = {model.model_fields["kind"].annotation for model in IDEAS}
    for kind in (name for each in kinds for name in get_args(each)):
        body = next(body for title, body in sections.items() if kind in title.split())
        for part in ("**Idea.**", "| setting |", "](curves/", "**When.**"):
            assert part in body, f"{kind}: {part}"


def test_every_column_that_a_command_reads_is_in_the_table_of_the_format() -> None:
    page = (DOCS / "logs.md").read_text().partition("## One format for all commands")[2]
    for name in (*OLD_NAMES, *TEXT_COLUMNS, f"{OUTCOME}MODEL", f"{COST}MODEL", "split"):
        assert f"`{name}`" in page, name


def test_the_bounds_of_the_decision_log_are_documented() -> None:
    page = (DOCS / "logs.md").read_text()
    said = {
        f"{QUEUE_MAX:,} decisions": True,
        f"{QUEUE_CHARACTERS_MAX // 1024**2} MiB of text": True,
        f"last {POOLS_MAX:,} that": True,
        f"more than {PER_SECOND_MAX} outcomes": True,
        f"burst of {BURST_MAX:,}": True,
        f"last {BLOCK * BLOCKS:,} texts": True,
        f"in steps of {BLOCK}": True,
    }
    text = " ".join(page.split())
    assert {each: each in text for each in said} == said


def test_the_changelog_knows_this_version_or_has_unreleased_changes() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{__version__}]" in changelog


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 90
    assert "make demo" in readme
    assert "make test" in readme


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    assert targets == described
    wanted = {"setup", "demo", "test", "lint", "type", "gen", "gen-check", "bench", "docs", "image", "check"}
    assert wanted <= targets
