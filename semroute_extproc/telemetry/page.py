"""The page of the admin port: HTML from templates. Its script only refreshes it and adds interaction."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import structlog
from cachetools import TTLCache

from semroute_extproc import __version__
from semroute_extproc.telemetry.admin import Asked, Page, as_json, text

FOLDER = Path(__file__).with_name("web")  # of templates, style and script
PREFIX = "/ui/"
_NAMES = ("decisions", "explain", "frontier", "pools", "config")
VIEWS = {"now": "/"} | {name: PREFIX + name for name in _NAMES}
STATIC = {"page.css": "text/css", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}
HTML = "text/html; charset=utf-8"

POSTED = ("explain", "config")
"""Views whose forms cost time or a judge: by GET, another site could make the operator's browser send one."""

FRESH_SECONDS = 1.0  # for which a view is kept: many readers cost as much as one
CACHED_MAX = 32  # views that are kept, by their URL
FIELDS_MAX = 16  # of a form
REST = 4.0  # Rest after making a view, as a multiple of the time it took
REST_SECONDS_MAX = 0.5
WAIT_SECONDS_MAX = 10.0  # for views that were requested before

Form = Mapping[str, str]
View = Callable[[Form], Any]
T = TypeVar("T")

log = structlog.get_logger("semroute.admin")


class Turns:
    """One at a time, and then a rest: the page takes at most a fifth of a core from the requests."""

    def __init__(self) -> None:
        self._lock, self._free_at = Lock(), 0.0

    def run(self, work: Callable[[], T]) -> T:
        """Do the work when it is its turn; raises TimeoutError."""
        if not self._lock.acquire(timeout=WAIT_SECONDS_MAX):
            raise TimeoutError
        try:
            time.sleep(max(self._free_at - time.monotonic(), 0.0))
            begun = time.monotonic()
            try:
                return work()
            finally:
                ended = time.monotonic()
                self._free_at = ended + min(REST * (ended - begun), REST_SECONDS_MAX)
        finally:
            self._lock.release()


class PageSite:
    """Serves the views, each a template and a function that makes its content, and their data as JSON."""

    def __init__(self, views: Mapping[str, View], data: Mapping[str, View] = {}) -> None:
        """A view's name is in `VIEWS`. Those that are missing, and other data, are not answered here."""
        self._views, self._data = {"login": lambda _: {}, **views}, data
        self._reading, self._posting = Turns(), Turns()
        self._kept, self._keeping = TTLCache[str, Page](CACHED_MAX, FRESH_SECONDS), Lock()

    def __call__(self, asked: Asked) -> Page | None:
        """See `admin.Site`."""
        name = asked.path.removeprefix(PREFIX)
        if asked.body is None and name in STATIC:
            return Page(200, STATIC[name], (FOLDER / name).read_bytes())
        name = "now" if asked.path == "/" else name if asked.path.startswith(PREFIX) else ""
        maker = self._views.get(name) or self._data.get(name.removesuffix(".json"))
        if maker is None:
            return None
        try:
            if asked.body is not None:
                fields = asked.body.decode(errors="replace")
                return self._posting.run(lambda: self._made(name, maker, fields))
            if name in POSTED:
                asked = asked._replace(query="")
            return self._find(asked.url) or self._reading.run(lambda: self._read(name, maker, asked))
        except TimeoutError:
            return text(503, "the page is busy\n")
        except Exception:
            log.exception("page.failed", view=name)
            return text(500, "this view failed; the log says why\n")

    def _find(self, url: str) -> Page | None:
        with self._keeping:
            return self._kept.get(url)

    def _read(self, name: str, maker: View, asked: Asked) -> Page:
        if (page := self._find(asked.url)) is not None:  # Another thread has made it meanwhile.
            return page
        page = self._made(name, maker, asked.query)
        with self._keeping:
            self._kept[asked.url] = page
        return page

    def _made(self, name: str, maker: View, fields: str) -> Page:
        try:
            form = dict(parse_qsl(fields, keep_blank_values=True, max_num_fields=FIELDS_MAX))
        except ValueError:
            return text(400, "too many fields\n")
        found = maker(form)
        if name not in self._views:
            return as_json(found)
        page = {"view": name, "views": VIEWS, "version": __version__, "form": form, "now": time.time()}
        shown = self._templates.get_template(f"{name}.html").render(page | found)
        return Page(200, HTML, shown.encode(errors="replace"))  # Bodies may have lone surrogates.

    @cached_property
    def _templates(self) -> Any:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # Imported only if it is used.

        loader = FileSystemLoader(FOLDER)
        made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, auto_reload=False)
        made.trim_blocks = made.lstrip_blocks = True
        made.filters |= {"clock": clock, "dollars": dollars, "percent": percent}
        return made


def clock(seconds: float) -> str:
    """A time of day in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"


def dollars(amount: float) -> str:
    """An amount with three significant digits, at least cents from one dollar on."""
    return f"${amount:,.2f}" if abs(amount) >= 1.0 else f"${amount:.3g}"


def percent(share: float | None) -> str:
    """A share, or a dash."""
    return "–" if share is None else f"{share:.1%}"
