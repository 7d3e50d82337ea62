"""A JSON client of one OpenAI-compatible endpoint, with persistent connections and without retries."""

import asyncio
import os
import ssl
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import msgspec

from semroute_extproc.errors import EndpointError
from semroute_extproc.io.files import open_file

ANSWER_BYTES_MAX, DETAIL_CHARACTERS_MAX = 8 * 1024 * 1024, 200
"""Limits on the bytes read from an answer and on the characters shown of an error's body."""
CA_BYTES_MAX = 16 * 1024 * 1024  # of the file of trusted certificates
KEEP_ALIVE_SECONDS = 4.0  # Below vLLM's idle timeout of 5 s: no request meets a connection being closed.


class Endpoint(AbstractAsyncContextManager["Endpoint"]):
    """Where to send requests. Use within one event loop, and close it."""

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        connections_max: int = 64,
    ) -> None:
        """`url` ends before the path, as in `http://host:8000/v1`; raises EndpointError (`setup`)."""
        # Errors, profiles and the configuration page show addresses, so they must hold no secret.
        if "@" in url.partition("://")[2].partition("/")[0]:
            problem = "a URL must not contain a user or password: set a variable with an API key"
            raise EndpointError("setup", problem)
        import httpx2  # imported here so that a server without endpoints starts faster

        self.url = url.rstrip("/")
        # Uncompressed, so that the size limit bounds the memory.
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key_env is not None:
            if not (key := os.environ.get(api_key_env, "").strip()):
                raise EndpointError("setup", f"the environment has no {api_key_env}")
            self._headers["authorization"] = f"Bearer {key}"
        try:
            secure = ca_file is not None or url.startswith("https:")
            if ca_file is not None:
                open_file(Path(ca_file), CA_BYTES_MAX).close()
            verify = ssl.create_default_context(cafile=ca_file) if secure else False
        except OSError as error:
            raise EndpointError("setup", f"{ca_file}: {error.strerror or error}") from None
        self._httpx = httpx2
        # A bare transport: redirects, proxies and cookies could send a prompt or a key to another host.
        limits = httpx2.Limits(max_connections=connections_max, keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)

    async def post(self, path: str, body: object, seconds: float, most: int = ANSWER_BYTES_MAX) -> bytes:
        """The whole answer to `body` as JSON within `seconds`; raises EndpointError."""
        content, answer = msgspec.json.encode(body), bytearray()
        send = self._transport.handle_async_request
        try:
            request = self._httpx.Request("POST", self.url + path, headers=self._headers, content=content)
            async with asyncio.timeout(seconds), aclosing(await send(request)) as response:
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) > most:
                        raise EndpointError("unreadable", f"more than {most} bytes")
        except TimeoutError:
            raise EndpointError("timeout", f"no answer within {seconds:g} s") from None
        except (self._httpx.HTTPError, self._httpx.InvalidURL, OSError) as error:
            raise EndpointError("connection", f"{type(error).__name__}: {error}") from None
        status, headers = response.status_code, response.headers
        if status == 200:
            return bytes(answer)
        detail = " ".join(answer[:DETAIL_CHARACTERS_MAX].decode("utf-8", "replace").split())
        retry_after = _retry_after(headers.get("retry-after", ""), headers.get("date", ""))
        raise EndpointError("http", f"status {status}: {detail}", status, retry_after)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _retry_after(value: str, date: str) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), by the server's own clock."""
    if value.strip().isdecimal():
        return float(value)
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(value) - parsedate_to_datetime(date)).total_seconds(), 0.0)
    return None
