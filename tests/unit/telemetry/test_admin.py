"""The admin port."""

from __future__ import annotations

import socket
import urllib.request

import pytest

from semroute_extproc.telemetry.admin import AdminServer, text


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
