"""The admin port: pages for health, metrics and the live configuration, and outcomes; served by a thread."""

import hmac
import json
import socket
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import structlog

OPEN = ("/livez", "/readyz")
"""Pages for probes: they need no token and answer any host name."""
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""On every answer: a browser must not keep, interpret or embed it."""

log = structlog.get_logger("semroute.admin")


class Page(NamedTuple):
    """One response of the admin port."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]  # by path
Posts = Mapping[str, Callable[[bytes], Page]]  # by path, for a posted body

POSTED_BYTES_MAX = 1024 * 1024  # Of a posted body
POSTED_TYPES = ("application/json", "application/x-ndjson", "application/jsonl")
"""A web page of another origin cannot post these without the server's consent, which is never given."""


def text(status: int, body: str) -> Page:
    """A plain-text page."""
    return Page(status, "text/plain; charset=utf-8", body.encode())


def probe(good: bool, problem: str) -> Page:
    """The answer to a probe."""
    return text(200, "ok\n") if good else text(503, f"{problem}\n")


def as_json(content: object) -> Page:
    """A page of JSON."""
    return Page(200, "application/json", (json.dumps(content, indent=2) + "\n").encode())


class AdminServer(ThreadingTCPServer):
    """Serves `pages` by path in a thread of its own until closed."""

    daemon_threads = allow_reuse_address = True

    def __init__(
        self,
        listen: str,
        pages: Pages,
        otherwise: Callable[[str], Page] | None = None,
        posts: Posts = MappingProxyType({}),
        hosts: Collection[str] = (),
        token: str = "",
    ) -> None:
        """`listen` is `host:port`, where port 0 takes a free one, or `unix:/path`.

        `otherwise` makes the pages that are not in `pages`. On a port, clients must use one of `hosts`,
        localhost or an IP address, and send `token`. Raises OSError if the address is taken.
        """
        index = f"there is {' '.join(sorted({*pages, *posts}))}\n"
        self.pages, self.posts, self.otherwise = pages, posts, otherwise or (lambda _: text(404, index))
        host, _, port = listen.rpartition(":")
        self._hosts, self._token = {*hosts, host, "localhost"}, token
        self._path = Path(listen.removeprefix("unix:")) if listen.startswith("unix:") else None
        inet = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self.address_family = inet if self._path is None else socket.AF_UNIX
        try:
            address: Any = (host.strip("[]"), int(port)) if self._path is None else str(self._path)
            super().__init__(address, _PageHandler)
        except OSError as error:
            raise OSError(f"cannot listen on {listen} for the admin port: {error.strerror}") from None
        self._thread = threading.Thread(target=self.serve_forever, name="admin", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def refusal(self, host: str, authorization: str) -> Page | None:
        """Why a request with these headers is refused, if it is."""
        if self._path is not None:
            return None  # The socket is for our user only.
        # A page of another site can resolve its own name to our address: DNS rebinding.
        try:
            name = urlsplit(f"//{host}").hostname or "localhost"
            known = name in self._hosts or bool(ip_address(name))
        except ValueError:
            known = False
        if not known:
            return text(
                421, "not a name of this server: use its IP address, or add the name to admin.hosts\n"
            )
        if self._token and not hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode()):
            return text(401, "needs the bearer token of admin.token\n")
        return None

    def server_bind(self) -> None:
        """Bind a Unix socket for our user only; replace one that a crash left behind."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        super().server_bind()
        if self._path is not None:
            self._path.chmod(0o600)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback for a client that disconnects."""
        if not isinstance(sys.exception(), OSError):
            log.exception("admin.failed")


class _PageHandler(BaseHTTPRequestHandler):
    server: AdminServer
    timeout = 10  # Seconds; a connection that is silent for longer is closed.
    server_version, sys_version = "semroute", ""

    def do_GET(self) -> None:
        path, headers = self.path.partition("?")[0], self.headers
        page = None
        if path not in OPEN:
            page = self.server.refusal(headers.get("host", ""), headers.get("authorization", ""))
        if page is None and self.command == "POST":
            page = self._posted(path)
        elif page is None:
            page = self.server.pages[path]() if path in self.server.pages else self.server.otherwise(path)
        self.send_response(page.status)
        if page.status == 401:
            self.send_header("www-authenticate", "Bearer")
        self.send_header("content-type", page.content_type)
        self.send_header("content-length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _posted(self, path: str) -> Page:
        length, kind = self.headers.get("content-length", ""), self.headers.get_content_type()
        if (accept := self.server.posts.get(path)) is None:
            return text(405 if path in self.server.pages else 404, f"nothing can be posted to {path}\n")
        if not length.isascii() or not length.isdigit():
            return text(411, "needs a content-length\n")
        body = self.rfile.read(min(int(length), POSTED_BYTES_MAX + 1))
        if len(body) > POSTED_BYTES_MAX:
            return text(413, f"larger than {POSTED_BYTES_MAX} bytes: send it in parts\n")
        if kind not in POSTED_TYPES:
            return text(415, f"needs a content-type: {' or '.join(POSTED_TYPES)}\n")
        return accept(body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes and scrapes are not logged."""
