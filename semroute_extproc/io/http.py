"""One OpenAI-compatible endpoint: JSON out, JSON back, over connections that are kept.

It needs the extra `http`, which is only imported when an endpoint is made, so that a server that asks
nobody can do without it. Nothing is retried here: whoever asks knows how long it can wait.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from semroute_extproc.errors import EndpointError

if TYPE_CHECKING:
    import aiohttp

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""Most of an answer that is read."""

CHUNK_BYTES = 65_536
"""Read at a time."""

KEEP_ALIVE_SECONDS = 4.0
"""Below the five seconds after which vLLM closes an idle connection, so that we do not write into it."""

DETAIL_CHARACTERS_MAX = 200
"""Most of an error's body that is shown."""


class Endpoint:
    """Where to send requests. Use within one event loop, and close it."""

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        connections_max: int = 64,
    ) -> None:
        """`url` ends before the path, as in `http://host:8000/v1`.

        Raises EndpointError with reason `setup` if the key's variable or the file of certificates is
        not there, the extra is not installed, or the address holds a password: addresses are told
        in errors, profiles and the configuration's page.
        """
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise EndpointError(
                "setup", "an address must hold no user or password: name a variable with a key"
            )
        try:
            import aiohttp
        except ModuleNotFoundError:
            raise EndpointError(
                "setup", "the Python package 'aiohttp' is missing: install semroute-extproc[http]"
            ) from None
        self.url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key_env is not None:
            key = os.environ.get(api_key_env, "").strip()
            if not key:
                raise EndpointError("setup", f"the environment has no {api_key_env}")
            self._headers["authorization"] = f"Bearer {key}"
        self._tls: ssl.SSLContext | bool = True
        if ca_file is not None:
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise EndpointError("setup", f"{ca_file}: {error.strerror or error}") from None
        self._connections_max = connections_max
        self._aiohttp = aiohttp
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: object, seconds: float) -> bytes:
        """The body of the answer to `body` as JSON, whole and within `seconds`.

        Raises EndpointError: `timeout`, `connection`, `http` (with status and retry_after) or
        `unreadable` (larger than ANSWER_BYTES_MAX).
        """
        # An answer that another end stops in the middle is a ClientPayloadError, a ClientError too.
        try:
            async with asyncio.timeout(seconds):
                return await self._post(path, msgspec.json.encode(body))
        except TimeoutError:
            raise EndpointError("timeout", f"no answer within {seconds:g} s") from None
        except (self._aiohttp.ClientError, OSError) as error:
            raise EndpointError("connection", f"{type(error).__name__}: {error}") from None

    async def _post(self, path: str, body: bytes) -> bytes:
        if self._session is None:
            connector = self._aiohttp.TCPConnector(
                limit=self._connections_max, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=self._tls
            )
            self._session = self._aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                timeout=self._aiohttp.ClientTimeout(total=None),
                cookie_jar=self._aiohttp.DummyCookieJar(),
            )
        # A redirect would carry the prompt and the key to another place.
        async with self._session.post(self.url + path, data=body, allow_redirects=False) as response:
            answer = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                answer += chunk
                if len(answer) > ANSWER_BYTES_MAX:
                    raise EndpointError("unreadable", f"more than {ANSWER_BYTES_MAX} bytes")
            if response.status != 200:
                detail = bytes(answer[:DETAIL_CHARACTERS_MAX]).decode("utf-8", "replace")
                raise EndpointError(
                    "http",
                    f"status {response.status}: {' '.join(detail.split())}",
                    status=response.status,
                    retry_after=_retry_after(
                        response.headers.get("retry-after"), response.headers.get("date")
                    ),
                )
            return bytes(answer)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _retry_after(value: str | None, date: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), by the server's own clock."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(date or "")
    except (ValueError, TypeError):
        return None
    return max(wait.total_seconds(), 0.0)


def decode(answer: bytes, shape: type[Any]) -> Any:
    """An answer as `shape`, a msgspec Struct; raises EndpointError with reason `unreadable`."""
    try:
        return msgspec.json.decode(answer, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EndpointError("unreadable", str(error)[:DETAIL_CHARACTERS_MAX]) from None
