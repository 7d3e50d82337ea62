"""Content-encodings of request bodies."""

from __future__ import annotations

import gzip
import os
import zlib
from types import SimpleNamespace

import pytest

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.request import encoding
from semroute_extproc.request.encoding import decode_body

LIMIT = 1_000_000
BODY = b'{"model":"auto","messages":[]}' * 100


@pytest.mark.parametrize("name", ["", "identity", " Identity ", "identity, identity", ","])
def test_a_body_that_is_not_encoded_is_the_same_object(name: str):
    assert decode_body(BODY, name, LIMIT) is BODY


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP", " gzip ", "identity, gzip"])
def test_gzip_is_read(name: str):
    assert decode_body(gzip.compress(BODY), name, LIMIT) == BODY


def test_several_members_are_one_body():
    members = b"".join(gzip.compress(BODY[start : start + 700]) for start in range(0, len(BODY), 700))
    assert decode_body(members, "gzip", LIMIT) == BODY


def test_members_larger_than_one_piece_of_input_are_read():
    noise = os.urandom(200_000)
    assert decode_body(gzip.compress(noise) + gzip.compress(noise), "gzip", LIMIT) == noise * 2


def test_zeros_after_the_last_member_are_padding():
    assert decode_body(gzip.compress(BODY) + bytes(100_000), "gzip", LIMIT) == BODY


@pytest.mark.parametrize("name", ["br", "zstd", "deflate", "gzip, gzip", "gzip, br"])
def test_other_encodings_are_named_in_the_error(name: str):
    with pytest.raises(UnsupportedEncoding) as caught:
        decode_body(BODY, name, LIMIT)
    assert caught.value.encoding == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY,
        gzip.compress(BODY)[:-1],
        gzip.compress(BODY)[:20],
        gzip.compress(BODY)[:-8] + bytes(8),
        gzip.compress(BODY) + b"x",
        gzip.compress(BODY) + gzip.compress(BODY)[:9],
        gzip.compress(BODY) + bytes(70_000) + b"x",
    ],
)
def test_a_broken_gzip_body_is_refused(body: bytes):
    with pytest.raises(BadBody) as caught:
        decode_body(body, "gzip", LIMIT)
    assert caught.value.cause == "bad_gzip"


@pytest.mark.parametrize("name", ["", "gzip"])
def test_the_limit_itself_is_allowed_and_one_byte_more_is_not(name: str):
    def encoded(data: bytes) -> bytes:
        return gzip.compress(data) if name else data

    assert decode_body(encoded(bytes(5_000)), name, 5_000) == bytes(5_000)
    with pytest.raises(BodyTooLarge) as caught:
        decode_body(encoded(bytes(5_001)), name, 5_000)
    assert caught.value.limit == 5_000


def test_the_limit_holds_for_all_members_together():
    with pytest.raises(BodyTooLarge):
        decode_body(gzip.compress(bytes(3_000)) * 2, "gzip", 5_000)


class Counting:
    """A zlib decompressor that counts what it gives out."""

    produced = 0

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(window)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(data, max_length)
        Counting.produced += len(piece)
        return piece

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_a_bomb_is_never_inflated_beyond_the_limit(monkeypatch: pytest.MonkeyPatch):
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    monkeypatch.setattr(encoding, "zlib", SimpleNamespace(decompressobj=Counting, error=zlib.error))
    with pytest.raises(BodyTooLarge):
        decode_body(bomb, "gzip", 100_000)
    assert Counting.produced == 100_001, "one byte too many tells that there is more"


def test_more_members_than_the_bound_are_refused():
    empty = gzip.compress(b"")
    assert decode_body(empty * encoding.GZIP_MEMBERS_MAX, "gzip", LIMIT) == b""
    with pytest.raises(BadBody, match="members"):
        decode_body(empty * (encoding.GZIP_MEMBERS_MAX + 1), "gzip", LIMIT)
