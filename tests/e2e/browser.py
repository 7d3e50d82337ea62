"""A real Chromium, and where its pictures go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update"]
DOCS = Path(__file__).resolve().parents[2] / "docs"
SCREENSHOTS = bool(os.environ.get("SEMROUTE_SCREENSHOTS"))
SCREENSHOT_BYTES_MAX = 150_000


@contextmanager
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # A container's root may not use the sandbox.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
        yield running
        running.close()
