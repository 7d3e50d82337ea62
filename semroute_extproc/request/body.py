"""Decodes and edits request bodies. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.outcome import Cause

GZIP_MEMBERS_MAX = 1_024  # per body; bounds the CPU time of many empty 20-byte members
MEMBERS_MAX = 4_096  # per edited object; each member becomes a Python object
_CHUNK_BYTES = 65_536  # input per call of zlib; bounds the copy it makes of the data after a gzip member
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode


def decode_body(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Decode the content-encoding (identity or gzip); returns `body` itself if there is none.

    Raises BodyTooLarge if the result is longer than `limit` bytes (decoding stops one byte over it),
    UnsupportedEncoding for other encodings, and BadBody `bad_gzip` for corrupt or truncated gzip data.
    """
    if len(body) > limit:
        raise BodyTooLarge(limit)
    codings = [coding.strip().lower() for coding in content_encoding.split(",")] if content_encoding else []
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return body
    if codings in (["gzip"], ["x-gzip"]):
        return _gunzip(body, limit)
    raise UnsupportedEncoding(content_encoding)


def _gunzip(body: bytes, limit: int) -> bytes:
    """The data of all gzip members; zeros after the last member are padding."""
    pieces: list[bytes] = []
    room = limit
    member, members = zlib.decompressobj(_GZIP_WINDOW), 1
    pending, position = b"", 0
    while pending or position < len(body):
        if not pending:
            pending = body[position : position + _CHUNK_BYTES]
            position += _CHUNK_BYTES
        if member.eof:
            if not pending.strip(b"\0") and not body[position:].strip(b"\0"):
                break
            members += 1
            if members > GZIP_MEMBERS_MAX:
                raise BadBody(Cause.BAD_GZIP, "too many members")
            member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            piece = member.decompress(pending, room + 1)
        except zlib.error:
            raise BadBody(Cause.BAD_GZIP) from None
        room -= len(piece)
        if room < 0:
            raise BodyTooLarge(limit)
        pieces.append(piece)
        pending = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise BadBody(Cause.BAD_GZIP, "cut short")
    return b"".join(pieces)


def set_members(body: bytes, members: Mapping[tuple[str, ...], object]) -> bytes:
    """Encode the JSON object `body` again with the member at each path set to its value, in order.

    A value on a path that is not an object is replaced with one. New members come last. A value is any
    JSON value or `msgspec.Raw`. Other values keep their bytes; white space between members is dropped,
    and of duplicate keys the last stays (docs/adr/0012-edits-reencode-the-top-level.md). Raises BadBody:
    `not_json` if the body is not exactly one JSON object, or `too_many_members`.
    """
    try:
        edited: dict[str, Any] = members_of(body)
        for path, value in members.items():
            inner = edited
            for key in path[:-1]:
                inner[key] = _object(inner.get(key))
                inner = inner[key]
            inner[path[-1]] = value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadBody(Cause.NOT_JSON) from None
    return _encode(edited)


def members_of(text: bytes | Raw) -> dict[str, Raw]:
    """The members of a JSON object, undecoded; raises BadBody `too_many_members`, or msgspec's errors."""
    found = _MEMBERS.decode(text)
    if len(found) > MEMBERS_MAX:
        raise BadBody(Cause.TOO_MANY_MEMBERS)
    return found


def _object(value: object) -> dict[str, Any]:
    """The members of an object on a path, which is either raw or already decoded by an earlier path."""
    if isinstance(value, dict):
        return value
    try:
        return members_of(value) if isinstance(value, Raw) else {}
    except msgspec.ValidationError:
        return {}
