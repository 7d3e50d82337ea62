"""Decodes and edits request bodies. Pure."""

import zlib
from collections.abc import Mapping
from typing import Any

import brotli
import msgspec
import zstandard
from msgspec import Raw

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.outcome import Cause

STREAMS_MAX = 1_024  # gzip members or zstd frames per body; bounds the CPU time of many empty ones
ZSTD_WINDOW_MAX = 8 * 1024**2  # bytes; senders must not use a larger window (RFC 9659)
MEMBERS_MAX = 4_096  # per edited object; each member becomes a Python object
_CHUNK_BYTES = 65_536  # input per call of zlib; bounds the copy it makes of the data after a gzip member
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # formats, as zlib's `wbits`
_ZSTD_FRAMES = (b"\xb5\x2f\xfd", b"\x2a\x4d\x18")  # within the magic numbers of data and of skippable frames
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode


def decode_body(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Decode the content-encoding (identity, gzip, deflate, zstd or br) and remove a byte order mark.

    Returns `body` itself if it has neither. Raises BodyTooLarge if the result is longer than `limit` bytes
    (decoding stops one byte over it), UnsupportedEncoding for other encodings, and BadBody `bad_encoding`
    for corrupt or truncated data.
    """
    if len(body) > limit:
        raise BodyTooLarge(limit)
    codings = [coding.strip().lower() for coding in content_encoding.split(",")] if content_encoding else []
    codings = [coding for coding in codings if coding not in ("", "identity")]
    match codings:
        case []:
            plain = body
        case ["gzip" | "x-gzip"]:
            plain = _inflate(body, limit, _GZIP)
        case ["deflate"]:  # the format of zlib, but some clients send its content without the header
            is_zlib = body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0
            plain = _inflate(body, limit, _ZLIB if is_zlib else _RAW)
        case ["zstd" | "br" as coding]:
            plain = _decompress(body, limit, coding)
        case _:
            raise UnsupportedEncoding(content_encoding)
    return plain.removeprefix(_BYTE_ORDER_MARK)


def _decompress(body: bytes, limit: int, coding: str) -> bytes:
    whole = True
    try:
        if coding == "br":
            brotli_decoder = brotli.Decompressor()
            plain: bytes = brotli_decoder.process(body, output_buffer_limit=limit + 1)
            whole = brotli_decoder.is_finished()
        elif sum(map(body.count, _ZSTD_FRAMES)) > STREAMS_MAX:
            raise BadBody(Cause.BAD_ENCODING, "too many frames")
        else:
            decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
            plain = decoder.stream_reader(body, read_across_frames=True).read(limit + 1)
            # The reader accepts data that is cut short; most senders write the size (else it is -1).
            whole = not body or len(plain) >= zstandard.frame_content_size(body)
    except (brotli.error, zstandard.ZstdError):
        raise BadBody(Cause.BAD_ENCODING) from None
    if len(plain) > limit:
        raise BodyTooLarge(limit)
    if not whole:
        raise BadBody(Cause.BAD_ENCODING, "cut short")
    return plain


def _inflate(body: bytes, limit: int, wbits: int) -> bytes:
    """The data of all members; zeros after the last member are padding."""
    pieces: list[bytes] = []
    room = limit
    member, members = zlib.decompressobj(wbits), 1
    pending, position = b"", 0
    while pending or position < len(body):
        if not pending:
            pending = body[position : position + _CHUNK_BYTES]
            position += _CHUNK_BYTES
        if member.eof:
            if not pending.strip(b"\0") and not body[position:].strip(b"\0"):
                break
            members += 1
            if members > STREAMS_MAX:
                raise BadBody(Cause.BAD_ENCODING, "too many members")
            member = zlib.decompressobj(wbits)
        try:
            piece = member.decompress(pending, room + 1)
        except zlib.error:
            raise BadBody(Cause.BAD_ENCODING) from None
        room -= len(piece)
        if room < 0:
            raise BodyTooLarge(limit)
        pieces.append(piece)
        pending = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise BadBody(Cause.BAD_ENCODING, "cut short")
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
