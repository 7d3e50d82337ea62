"""The admin port."""

from __future__ import annotations

import http.client
import select
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from semroute_extproc.telemetry.admin import (
    CONNECTIONS_MAX,
    HEADERS,
    POSTED_BYTES_MAX,
    POSTED_TYPES,
    AdminServer,
    Asked,
    Page,
    text,
)
from semroute_extproc.telemetry.page import PageSite


def test_a_port_that_is_taken_is_told_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {listen} for the admin port"):
            AdminServer(listen, {})


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_is_served() -> None:
    server = AdminServer("[::1]:0", {"/livez": lambda: text(200, "ok\n")})
    with urllib.request.urlopen(f"http://[::1]:{server.port}/livez") as response:
        assert response.read() == b"ok\n"
    server.close()


def test_a_client_that_goes_away_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    server = AdminServer("127.0.0.1:0", {"/big": lambda: text(200, "x" * 50_000_000)})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/big") as response:
        response.read()
    server.close()
    assert "Traceback" not in capfd.readouterr().err


@contextmanager
def serving(**guards: Any) -> Iterator[Callable[..., Any]]:
    """A server with two pages, and a client that can send any header."""
    pages = {"/livez": lambda: text(200, "ok\n"), "/config": lambda: text(200, "all of it\n")}
    server = AdminServer("127.0.0.1:0", pages, **guards)

    def get(path: str, method: str = "GET", **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.putrequest(method, path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer

    yield get
    server.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:9090", 200), ("10.1.2.3", 200), ("[::1]:9090", 200), ("localhost:9090", 200)),
        *(("LOCALHOST", 200), ("semroute.internal:9090", 200), ("", 200)),
        *(("evil.example:9090", 421), ("127.0.0.1.evil.example", 421), ("[::1", 421), ("a@127.0.0.1:x", 200)),
        *(("localhost.evil.example", 421), ("semroute", 421)),
    ],
)
def test_a_name_that_is_not_the_servers_is_refused(host: str, status: int) -> None:
    """A page of another site can resolve its own name to this address (DNS rebinding)."""
    with serving(hosts=("semroute.internal",)) as get:
        headers = {"host": host} if host else {}
        assert get("/config", **headers).status == status
        assert get("/livez", **headers).status == 200, "probes ask by any name"


def test_a_token_is_needed_for_every_page_but_those_of_probes() -> None:
    with serving(token="t0ken-0123456789") as get:
        assert get("/livez").status == 200
        for path in ("/config", "/unknown", "/config?x=1"):
            refused = get(path)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("Bearer x", "t0ken-0123456789", "Bearer t0ken-0123456789 ", "Bearer \xff", "Basic a"):
            assert get("/config", authorization=wrong).status in (401, 200 if wrong.endswith(" ") else 401)
        assert get("/config", authorization="Bearer t0ken-0123456789").status == 200
        assert get("/config", authorization="Bearer t0ken-0123456789", host="evil.example").status == 421


def test_every_answer_tells_a_browser_not_to_use_it() -> None:
    with serving(token="t0ken-0123456789") as get:
        answers = [get("/livez"), get("/config"), get("/livez", "HEAD"), get("/livez", "POST"), get("/none")]
        answers.append(get("/config", host="evil.example"))
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_a_unix_socket_is_for_its_user_and_needs_no_name_and_no_token(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    server = AdminServer(f"unix:{path}", {"/config": lambda: text(200, "x")}, token="t0ken-0123456789")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://any/config").status_code == 200
    server.close()


class Posting:
    """A server that takes bodies, and a client of it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        pages, posts = {"/livez": lambda: text(200, "ok\n")}, {"/outcomes": self._take}
        self.server = AdminServer("127.0.0.1:0", pages, posts=posts)

    def _take(self, body: bytes) -> Page:
        self.bodies.append(body)
        return text(200, "taken\n")

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.putrequest("POST", path)
        given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        for name, value in given.items():
            if value:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found


@pytest.fixture
def posting() -> Iterator[Posting]:
    made = Posting()
    yield made
    made.server.close()


@pytest.mark.parametrize("kind", [*POSTED_TYPES, "application/json; charset=utf-8"])
def test_a_posted_body_reaches_its_path(posting: Posting, kind: str) -> None:
    assert posting.post("/outcomes?a=b", b"{}", **{"content-type": kind}) == (200, "taken\n")
    assert posting.bodies == [b"{}"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/livez", b"{}", {}, 405),
        ("/other", b"{}", {}, 404),
        ("/outcomes", b"{}", {"content-length": ""}, 411),
        ("/outcomes", b"{}", {"content-length": "-2"}, 411),
        ("/outcomes", b"x" * (POSTED_BYTES_MAX + 1), {}, 413),
        # What a form or script of another site may post without asking first.
        ("/outcomes", b"{}", {"content-type": "text/plain"}, 415),
        ("/outcomes", b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("/outcomes", b"{}", {"content-type": ""}, 415),
    ],
)
def test_any_other_body_is_refused(
    posting: Posting, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert posting.post(path, body, **headers)[0] == status
    assert posting.bodies == []


def test_a_path_for_bodies_is_no_page(posting: Posting) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{posting.server.port}/outcomes")


class TestLogin:
    """A browser enters the token once, and its cookie stands for it."""

    TOKEN = "a token; with = and é"

    def setup_method(self) -> None:
        site = PageSite({"decisions": lambda _: {"rows": []}})
        self.server = AdminServer(
            "127.0.0.1:0", {"/config": lambda: text(200, "c")}, site=site, token=self.TOKEN
        )
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.server.port}")

    def teardown_method(self) -> None:
        self.client.close()
        self.server.close()

    def test_a_view_asks_for_the_token_and_its_style_does_not(self) -> None:
        for path in ("/", "/ui/decisions", "/ui/login"):
            answer = self.client.get(path)
            assert (answer.status_code, 'type="password"' in answer.text) == (401, True)
        assert self.client.get("/ui/page.css").status_code == 200
        assert "password" not in self.client.get("/config").text, "programs get a line of text"

    def test_the_token_is_kept_in_a_cookie_that_scripts_and_other_sites_cannot_use(self) -> None:
        answer = self.client.post("/ui/login", data={"token": self.TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert answer.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
        assert self.client.get("/ui/decisions").status_code == 200
        assert self.client.get("/config").status_code == 200

    def test_a_wrong_token_is_told_and_sets_no_cookie(self) -> None:
        answer = self.client.post("/ui/login", data={"token": "wrong"})
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
        assert "not the token" in answer.text
        assert self.client.get("/ui/decisions", headers={"cookie": "semroute-admin=wrong"}).status_code == 401

    def test_a_form_that_is_sent_without_the_cookie_leads_to_the_login(self) -> None:
        form = {f"field-{number}": "x" * 5_000 for number in range(20)}
        for path in ("/ui/decisions", "/ui/login"):
            answer = self.client.post(path, data=form)
            assert (answer.status_code, 'type="password"' in answer.text) == (401, True)

    def test_a_wrong_header_is_not_saved_by_a_cookie(self) -> None:
        self.client.post("/ui/login", data={"token": self.TOKEN})
        assert self.client.get("/config", headers={"authorization": "Bearer wrong"}).status_code == 401


class TestForms:
    """What is sent to the admin port."""

    def setup_method(self) -> None:
        self.asked = list[Asked]()

        def site(asked: Asked) -> Page | None:
            self.asked.append(asked)
            return text(200, "taken\n") if asked.path == "/form" else None

        self.server = AdminServer("127.0.0.1:0", {"/livez": lambda: text(200, "ok\n")}, site=site)

    def teardown_method(self) -> None:
        self.server.close()

    def send(self, head: str, body: str = "") -> str:
        with socket.create_connection(("127.0.0.1", self.server.port)) as client:
            client.sendall(f"{head}\r\n\r\n{body}".encode())
            return client.makefile("rb").read().decode()

    def test_a_form_reaches_the_site_with_its_query(self) -> None:
        assert "taken" in self.send("POST /form?a=1 HTTP/1.1\r\nContent-Length: 3", "b=2")
        [asked] = self.asked
        assert (asked.path, asked.query, asked.body, asked.url) == ("/form", "a=1", b"b=2", "/form?a=1")

    @pytest.mark.parametrize("length", ["1234567890", "9" * 5_000])
    def test_a_form_that_is_too_large_is_refused_unread(self, length: str) -> None:
        assert " 413 " in self.send(f"POST /form HTTP/1.1\r\nContent-Length: {length}")

    @pytest.mark.parametrize("length", ["", "-1", "1e3", "²"])
    def test_a_form_without_a_length_is_refused(self, length: str) -> None:
        assert " 411 " in self.send(f"POST /form HTTP/1.1\r\nContent-Length: {length}")

    def test_a_form_that_another_site_made_a_browser_send_is_refused(self) -> None:
        head = "POST /form HTTP/1.1\r\nHost: 127.0.0.1:9090\r\nContent-Length: 0\r\nOrigin: "
        assert " 403 " in self.send(head + "http://evil.example")
        assert " 403 " in self.send(head + "null")
        assert " 403 " in self.send(head + "http://[")
        assert self.asked == []
        assert "taken" in self.send(head + "http://127.0.0.1:9090")

    def test_a_page_takes_no_form(self) -> None:
        assert " 405 " in self.send("POST /livez HTTP/1.1\r\nContent-Length: 0")

    def test_a_browser_is_told_to_run_nothing_from_elsewhere(self) -> None:
        answer = self.send("GET /livez HTTP/1.1").lower()
        assert "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'" in answer
        assert "unsafe" not in answer
        assert "x-content-type-options: nosniff" in answer


def test_clients_that_send_slowly_do_not_keep_others_out() -> None:
    server = AdminServer("127.0.0.1:0", {"/livez": lambda: text(200, "ok\n")})
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CONNECTIONS_MAX)]
    try:
        for each in slow:
            each.sendall(b"GET /")
        for _ in range(CONNECTIONS_MAX + 1):
            assert http_get(server) == "ok\n"
    finally:
        for each in slow:
            each.close()
        server.close()


def http_get(server: AdminServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/livez", timeout=5) as response:
        return str(response.read().decode())


def test_a_flood_of_connections_is_cut_and_the_port_answers_afterwards() -> None:
    server = AdminServer("127.0.0.1:0", {"/livez": lambda: text(200, "ok\n")})
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CONNECTIONS_MAX + 8)]
    try:
        cut, ends = list[socket.socket](), time.monotonic() + 8  # An idle one is closed after ten.
        while len(cut) < 8 and time.monotonic() < ends:
            cut = select.select(idle, [], [], 0.1)[0]
        assert len(cut) >= 8
        threads = [each for each in threading.enumerate() if "process_request_thread" in each.name]
        assert len(threads) <= CONNECTIONS_MAX
    finally:
        for each in idle:
            each.close()
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            if b"ok" in client.makefile("rb").read():
                break
    else:
        pytest.fail("no answer after the flood")
    server.close()
