"""The admin port: health, metrics, the live configuration, outcomes and the page; served by threads."""

import hmac
import json
import socket
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import structlog

OPEN = ("/livez", "/readyz", "/ui/page.css", "/ui/icon.svg")
"""Pages for probes, and the style of the login page: they need no token, and any host name is accepted."""
LOGIN, COOKIE, LOGIN_BYTES_MAX = "/ui/login", "semroute-admin", 4_096
CONNECTIONS_MAX = 64  # at a time, because each has a thread
EVICTION_SECONDS_MAX = 0.1  # until the place of a closed connection is free

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",  # Without a referrer a browser does not say which site sends a form.
    "x-content-type-options": "nosniff",
}
"""Headers of every answer: no content from elsewhere, nothing inline, no embedding by other sites."""

log = structlog.get_logger("semroute.admin")


class Asked(NamedTuple):
    """One request to the admin port."""

    path: str
    query: str = ""
    body: bytes | None = None  # of a POST
    content_type: str = ""

    @property
    def url(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path


class Page(NamedTuple):
    """One response of the admin port."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Pages = Mapping[str, Callable[[], Page]]  # by path
Posts = Mapping[str, Callable[[bytes], Page]]  # by path, for a posted body

POSTED_BYTES_MAX = 1024 * 1024  # Of a posted body
POSTED_TYPES = ("application/json", "application/x-ndjson", "application/jsonl")
"""A web page of another origin can post these only if the server allows it (CORS), which it never does."""
Site = Callable[[Asked], Page | None]  # None: not one of its paths


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
        otherwise: Callable[[Asked], Page] | None = None,
        posts: Posts = MappingProxyType({}),
        site: Site = lambda _: None,
        hosts: Collection[str] = (),
        token: str = "",
    ) -> None:
        """`listen` is `host:port`, where port 0 takes a free one, or `unix:/path`.

        `site` is asked first, then `pages`, then `otherwise`. On a port, clients must use one of `hosts`,
        localhost or an IP address, and send `token`. Raises OSError if the address is taken.
        """
        index = f"there is {' '.join(sorted({*pages, *posts}))}\n"
        self.pages, self.posts, self.otherwise = pages, posts, otherwise or (lambda _: text(404, index))
        self.site = site
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self.sending = dict[socket.socket, None]()  # connections with an incomplete request, oldest first
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
            message = "not a name of this server: use its IP address, or add the name to admin.hosts\n"
            return text(421, message)
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

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in its own thread; above the limit, it replaces the oldest incomplete one."""
        if not self._free.acquire(blocking=False):
            for oldest in list(self.sending)[:1]:
                with suppress(OSError):  # It has ended by itself.
                    oldest.shutdown(socket.SHUT_RDWR)
            if not self._free.acquire(timeout=EVICTION_SECONDS_MAX):
                self.shutdown_request(request)
                return
        self.sending[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.sending.pop(request, None)
            self._free.release()

    def answer(self, asked: Asked) -> Page:
        """The requested page."""
        if (page := self.site(asked)) is not None:
            return page
        if asked.body is None:
            return self.pages[asked.path]() if asked.path in self.pages else self.otherwise(asked)
        if (accept := self.posts.get(asked.path)) is None:
            refused = text(405, f"nothing can be posted to {asked.path}\n")
            return refused if asked.path in self.pages else self.otherwise(asked)
        if asked.content_type.partition(";")[0].strip().lower() not in POSTED_TYPES:
            return text(415, f"needs a content-type: {' or '.join(POSTED_TYPES)}\n")
        return accept(asked.body)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback for a client that disconnects."""
        if not isinstance(sys.exception(), OSError):
            log.exception("admin.failed")


class _PageHandler(BaseHTTPRequestHandler):
    server: AdminServer
    timeout = 10  # Seconds; a connection that is silent for longer is closed.
    server_version, sys_version = "semroute", ""

    def do_GET(self) -> None:
        self._answer(None)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        length, origin = self.headers.get("content-length", ""), self.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != self.headers.get("host"):
            # Browsers say which site sends a form: another one must not act with the operator's rights.
            self._send(text(403, "another site sent this\n"))
        elif not length.isascii() or not length.isdigit():
            self._send(text(411, "needs a content-length\n"))
        elif (
            len(length) > 9
            or len(body := self.rfile.read(min(int(length), POSTED_BYTES_MAX + 1))) > POSTED_BYTES_MAX
        ):
            self._send(text(413, f"larger than {POSTED_BYTES_MAX} bytes: send it in parts\n"))
        else:
            self._answer(body)

    def _answer(self, body: bytes | None) -> None:
        self.server.sending.pop(self.connection, None)
        path, _, query = self.path.partition("?")
        asked = Asked(path, query, body, self.headers.get("content-type", ""))
        refused = None
        if path not in OPEN:
            refused = self.server.refusal(self.headers.get("host", ""), self._authorization())
        self._send(self.server.answer(asked) if refused is None else self._login(asked, refused))

    def _authorization(self) -> str:
        """The header, or what the login stored in a cookie."""
        found: str = self.headers.get("authorization", "")
        parts = (part.strip().partition("=") for part in self.headers.get("cookie", "").split(";"))
        return found or next((f"Bearer {unquote(value)}" for name, _, value in parts if name == COOKIE), "")

    def _login(self, asked: Asked, refused: Page) -> Page:
        """What a client without the token gets: the login page, or a cookie if it posted the token."""
        if refused.status != 401 or not (asked.path == "/" or asked.path.startswith("/ui/")):
            return refused
        wrong = ""
        if asked.path == LOGIN and asked.body is not None:
            token = dict(parse_qsl(asked.body[:LOGIN_BYTES_MAX].decode(errors="replace"))).get("token", "")
            if self.server.refusal(self.headers.get("host", ""), f"Bearer {token}") is None:
                cookie = f"{COOKIE}={quote(token, safe='')}; Path=/; HttpOnly; SameSite=Strict"
                return text(303, "")._replace(headers=(("location", "/"), ("set-cookie", cookie)))
            wrong = "wrong=1"
        form = self.server.site(Asked(LOGIN, wrong))
        return refused if form is None else form._replace(status=401)

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        if page.status == 401:
            self.send_header("www-authenticate", "Bearer")
        self.send_header("content-type", page.content_type)
        self.send_header("content-length", str(len(page.body)))
        for name, value in page.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes and scrapes are not logged."""
