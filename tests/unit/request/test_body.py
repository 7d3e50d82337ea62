"""Request bodies: content-encodings, and edits of their members."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.request import body as bodies
from semroute_extproc.request.body import as_python, check_structure, decode_body, set_members, structure

LIMIT = 1_000_000
BODY = b'{"model":"auto","messages":[]}' * 100
GZIPPED = gzip.compress(BODY, mtime=0)
"""The same in every process: test names contain it."""
MODEL = {("model",): "qwen"}
SWITCH = {("chat_template_kwargs", "enable_thinking"): False}


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


@pytest.mark.parametrize("name", ["compress", "gzip, gzip", "gzip, br"])
def test_other_encodings_are_named_in_the_error(name: str):
    with pytest.raises(UnsupportedEncoding) as caught:
        decode_body(BODY, name, LIMIT)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY,
        GZIPPED[:-1],
        GZIPPED[:20],
        GZIPPED[:-8] + bytes(8),
        GZIPPED + b"x",
        GZIPPED + GZIPPED[:9],
        GZIPPED + bytes(70_000) + b"x",
    ],
)
def test_a_broken_gzip_body_is_refused(body: bytes):
    with pytest.raises(BadBody) as caught:
        decode_body(body, "gzip", LIMIT)
    assert caught.value.cause == "bad_encoding"


ENCODED = {
    "br": brotli.compress(BODY),
    "zstd": zstandard.compress(BODY),
    "deflate": zlib.compress(BODY),
    "Deflate": zlib.compress(BODY)[2:-4],  # without zlib's header, as some clients send it
    "zstd, identity": zstandard.compress(BODY[:700]) + zstandard.compress(BODY[700:]),
}


@pytest.mark.parametrize("name", ENCODED)
def test_other_encodings_are_read(name: str):
    assert decode_body(ENCODED[name], name, LIMIT) == BODY


@pytest.mark.parametrize("name", ["br", "zstd", "deflate"])
@pytest.mark.parametrize("broken", [BODY, b"\xff" * 40])
def test_a_broken_body_is_refused_whatever_its_encoding(name: str, broken: bytes):
    with pytest.raises(BadBody) as caught:
        decode_body(broken, name, LIMIT)
    assert caught.value.cause == "bad_encoding"


@pytest.mark.parametrize("name", ["br", "deflate", "zstd"])
def test_a_body_that_is_cut_short_is_refused(name: str):
    with pytest.raises(BadBody):
        decode_body(ENCODED[name][:-9], name, LIMIT)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("br", partial(brotli.compress, quality=1)), ("zstd", zstandard.compress), ("deflate", zlib.compress)],
)
def test_a_bomb_of_any_encoding_stops_at_the_limit(name: str, compress: Callable[[bytes], bytes]):
    assert decode_body(compress(bytes(5_000)), name, 5_000) == bytes(5_000)
    bomb = compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        decode_body(bomb, name, 100_000)
    assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    tracemalloc.stop()


def test_more_zstd_frames_than_the_bound_are_refused():
    empty = zstandard.compress(b"")
    assert decode_body(empty * bodies.STREAMS_MAX, "zstd", LIMIT) == b""
    skipped = b"\x50\x2a\x4d\x18" + bytes(4)
    for frame in (empty, skipped):
        with pytest.raises(BadBody, match="frames"):
            decode_body(frame * (bodies.STREAMS_MAX + 1), "zstd", LIMIT)


def test_a_zstd_window_above_the_bound_is_refused():
    params = zstandard.ZstdCompressionParameters.from_level(3, window_log=25)
    wide = zstandard.ZstdCompressor(compression_params=params).compressobj()
    with pytest.raises(BadBody):
        decode_body(wide.compress(os.urandom(9_000_000)) + wide.flush(), "zstd", 20_000_000)


@pytest.mark.parametrize("name", ["", "gzip"])
def test_a_byte_order_mark_is_removed(name: str):
    marked = b"\xef\xbb\xbf" + BODY
    assert decode_body(gzip.compress(marked) if name else marked, name, LIMIT) == BODY


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
    """A zlib decompressor that counts its output."""

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
    monkeypatch.setattr(bodies, "zlib", SimpleNamespace(decompressobj=Counting, error=zlib.error))
    with pytest.raises(BodyTooLarge):
        decode_body(bomb, "gzip", 100_000)
    assert Counting.produced == 100_001, "one byte too many tells that there is more"


def test_more_gzip_members_than_the_bound_are_refused():
    empty = gzip.compress(b"")
    assert decode_body(empty * bodies.STREAMS_MAX, "gzip", LIMIT) == b""
    with pytest.raises(BadBody, match="members"):
        decode_body(empty * (bodies.STREAMS_MAX + 1), "gzip", LIMIT)


def reason(body: bytes) -> str:
    with pytest.raises(BadBody) as caught:
        set_members(body, MODEL)
    return caught.value.cause


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"auto"}', b'{"model":"qwen"}'),
        (b'{"model":null}', b'{"model":"qwen"}'),
        (b'{"model":{"a":[1]},"b":2}', b'{"model":"qwen","b":2}'),
        (b' \n{ "a" : [1,  2] ,\t"model"  :\r "auto" } ', b'{"a":[1,  2],"model":"qwen"}'),
        (
            b'{"a":"model","b":{"model":"x"},"model":"auto"}',
            b'{"a":"model","b":{"model":"x"},"model":"qwen"}',
        ),
        (b'{"Model":1,"model":2,"model ":3}', b'{"Model":1,"model":"qwen","model ":3}'),
        (b'{"\\u006dodel":"auto","a":1}', b'{"model":"qwen","a":1}'),
    ],
)
def test_only_the_named_member_changes(body: bytes, expected: bytes):
    assert set_members(body, MODEL) == expected


@pytest.mark.parametrize(
    "rest",
    [
        b'"a":1E400',
        b'"a":-0.0',
        b'"a":12345678901234567890123',
        b'"a":1.10',
        b'"a":"\\u00e9\\/\\u0000"',
        b'"a":"\xc3\xa9"',
        b'"a":"\xff"',
        b'"a":"\\"}{,:model"',
        b'"a":"\\\\"',
        b'"a":[{"model":"inner", "model" : 1.0},[]]',
        b'"":0',
    ],
)
def test_every_other_value_keeps_its_bytes(rest: bytes):
    assert set_members(b'{%s,"model":"auto"}' % rest, MODEL) == b'{%s,"model":"qwen"}' % rest
    assert set_members(b'{"model":"auto",%s}' % rest, MODEL) == b'{"model":"qwen",%s}' % rest


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","model":"b"}', b'{"model":"qwen"}'),
        (b'{"a":1,"model":"b","a":{"b":1, "b":2}}', b'{"a":{"b":1, "b":2},"model":"qwen"}'),
        (b'{"\\u006dodel":"auto","model":"b"}', b'{"model":"qwen"}'),
    ],
)
def test_of_a_duplicate_key_the_last_value_stays(body: bytes, expected: bytes):
    assert set_members(body, MODEL) == expected


def test_missing_members_are_put_last_in_the_order_given():
    members = {("b",): 1, ("a", "c"): 2, ("a", "b"): 3}
    assert set_members(b'{ "z":0}', members) == b'{"z":0,"b":1,"a":{"c":2,"b":3}}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (b'{"chat_template_kwargs":{}}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (
            b'{"chat_template_kwargs": { "x":1.0} }',
            b'{"chat_template_kwargs":{"x":1.0,"enable_thinking":false}}',
        ),
        (
            b'{"chat_template_kwargs":{"enable_thinking":true}}',
            b'{"chat_template_kwargs":{"enable_thinking":false}}',
        ),
        (b'{"chat_template_kwargs":null}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (b'{"chat_template_kwargs":[1]}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
    ],
)
def test_a_member_inside_an_object_is_set_or_the_object_made(body: bytes, expected: bytes):
    assert set_members(body, SWITCH) == expected


def test_several_members_are_set_at_once():
    body = b'{"reasoning":{"summary":"auto","effort":"low"},"model":"auto"}'
    members = {("model",): "qwen", ("reasoning", "effort"): "high", ("user",): None}
    assert set_members(body, members) == (
        b'{"reasoning":{"summary":"auto","effort":"high"},"model":"qwen","user":null}'
    )


@pytest.mark.parametrize("value", ['é "x"\n\u2028', 1.5, None, True, {"type": "disabled"}, [1, "a"]])
def test_values_of_every_type_are_written(value: object):
    assert json.loads(set_members(b'{"a":1}', {("a",): value})) == {"a": value}


def test_raw_values_are_written_as_they_are():
    assert set_members(b'{"a":1}', {("a",): Raw(b"1E400")}) == b'{"a":1E400}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b'"model"',
        b"null",
        b"{",
        b'{"model"}',
        b'{"model":}',
        b'{"model":1,}',
        b'{"model":1}}',
        b'{"model":1} {"model":2}',
        b'{"a":tru,"model":1}',
        b'{"a":[1}],"model":1}',
        b'{"a":"\n","model":1}',
        b'{"a":"\\ud800","model":1}',
        b'{"\xff":1,"model":1}',
        b"{'model':1}",
        b'\xef\xbb\xbf{"model":1}',
        '{"model":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_exactly_one_json_object_is_refused(body: bytes):
    assert reason(body) == ("wrong_type" if body in (b"[]", b'"model"', b"null") else "not_json")


def test_a_body_that_only_python_reads_is_edited_as_python_writes_it():
    strict, document = as_python('{"a":"\\ud800","n":[NaN,-Infinity,1e999,1],"é":{"x":1}}'.encode("utf-16"))
    assert json.loads(strict) == {"a": "?", "n": [None, None, None, 1], "é": {"x": 1}}
    sent = set_members(document, {("model",): "qwen", ("é", "y"): Raw(b"2"), ("z",): {"b": Raw(b"[1]")}})
    assert sent == (
        b'{"a": "\\ud800", "n": [NaN, -Infinity, Infinity, 1], "\\u00e9": {"x": 1, "y": 2}, '
        b'"model": "qwen", "z": {"b": [1]}}'
    )


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "not_json"),
        (b"[1]", "wrong_type"),
        (b'{"a":"\n"}', "not_json"),
        (b'{"a":01}', "not_json"),
        (b'{"a":' + b"9" * 5_000 + b"}", "not_json"),
        (b'{"a":"\xff"}', "not_json"),
        (gzip.compress(b'{"model":"auto"}', mtime=0), "not_json"),
        (b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "too_deep"),
    ],
)
def test_what_python_refuses_is_refused(body: bytes, cause: str):
    with pytest.raises(BadBody) as caught:
        as_python(body)
    assert caught.value.cause == cause


@given(
    values=st.lists(
        st.recursive(st.text('\\"[{:,x', max_size=3) | st.integers(), st.lists, max_leaves=9), max_size=3
    ),
    step=st.integers(2, 40),
)
def test_structure_is_counted_outside_of_strings_alone(values: list[Any], step: int):
    body = json.dumps({"model": "x", "values": values}).encode()
    expected = [0]

    def count(value: Any) -> None:
        if isinstance(value, dict):
            expected[0] += 1 + 2 * len(value)
            for inner in value.values():
                count(inner)
        elif isinstance(value, list):
            expected[0] += 1
            for inner in value:
                count(inner)
        expected[0] += isinstance(value, str)

    count(json.loads(body))
    assert structure(body, b'[{":', step) == expected[0]


@pytest.mark.parametrize("element", [b"[]", b"{}", b'""', b'{"a":0}'])
def test_more_structure_than_the_bound_is_refused(element: bytes):
    def body(count: int) -> bytes:
        return b'{"x":[' + b",".join([element] * count) + b"]}"

    units = {b"[]": 1, b"{}": 1, b'""': 1, b'{"a":0}': 3}[element]
    most = (bodies.STRUCTURE_MAX - 4) // units  # the rest is the object around it
    check_structure(body(most))
    with pytest.raises(BadBody, match="too_many_parts"):
        check_structure(body(most + 1))


def test_a_long_text_with_much_punctuation_is_not_structure():
    text = json.dumps({"content": '[{"a": 1}, {"b": "\\\\"}] ' * 100_000}).encode()
    check_structure(text)
    check_structure(b'{"prompt":[' + b"1," * 500_000 + b"1]}")  # nor are token ids
    with pytest.raises(BadBody, match="too_many_parts"):  # which Python would build
        as_python(b'{"x":NaN,"prompt":[' + b"1," * 500_000 + b"1]}")


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd", "br"])
def test_a_small_body_may_not_grow_without_bounds(name: str):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}.get(name)
    compress = compress or partial(brotli.compress, quality=3)
    assert len(decode_body(compress(bytes(bodies.EXPANDED_MIN)), name, 10**9)) == bodies.EXPANDED_MIN
    small = compress(bytes(16 * 1024**2))
    with pytest.raises(BodyTooLarge) as caught:
        decode_body(small, name, 10**9)
    assert caught.value.limit == max(bodies.EXPANDED_MIN, bodies.RATIO_MAX * len(small))
    noise = compress(os.urandom(3 * 1024**2))
    assert len(decode_body(noise, name, 10**9)) == 3 * 1024**2
