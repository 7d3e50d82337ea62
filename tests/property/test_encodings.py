"""Every content-encoding of a body, against the libraries that write them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.errors import BadBody, BodyTooLarge
from semroute_extproc.request.body import decode_body

LIMIT = 2_000
MARK = b"\xef\xbb\xbf"
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:]),
    "deflate": zlib.compress,
    "Deflate": lambda data: zlib.compress(data, wbits=-zlib.MAX_WBITS),
    "zstd": zstandard.compress,
    "ZSTD": lambda data: zstandard.compress(data[:3]) + zstandard.compress(data[3:]),
    "br": brotli.compress,
}
encodings = st.sampled_from([*ENCODERS])
plain = st.binary(max_size=60).filter(lambda data: json.detect_encoding(data) == "utf-8")


@given(encoding=encodings, data=plain, mark=st.sampled_from([b"", MARK]))
def test_what_was_encoded_comes_back_without_its_byte_order_mark(encoding: str, data: bytes, mark: bytes):
    assert decode_body(ENCODERS[encoding](mark + data), encoding, LIMIT) == data


@given(encoding=encodings, data=st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_but_bad_body(encoding: str, data: bytes):
    try:
        decoded = decode_body(data, encoding, LIMIT)
    except (BadBody, BodyTooLarge):
        return
    assert len(decoded) <= LIMIT


@given(encoding=encodings, size=st.integers(LIMIT + 1, 3 * LIMIT), byte=st.sampled_from([b"\0", b" ", b"{"]))
def test_more_than_the_limit_is_always_too_large(encoding: str, size: int, byte: bytes):
    with pytest.raises(BodyTooLarge):
        decode_body(ENCODERS[encoding](byte * size), encoding, LIMIT)


@given(encoding=encodings, data=plain, position=st.integers(0, 10_000))
def test_a_body_cut_short_never_gains_a_byte(encoding: str, data: bytes, position: int):
    encoded = ENCODERS[encoding](data)
    try:
        decoded = decode_body(encoded[: position % (len(encoded) + 1)], encoding, LIMIT)
    except BadBody:
        return
    assert data.startswith(decoded)
