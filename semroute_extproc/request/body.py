"""Decodes and edits request bodies. Pure.

Servers in Python read more than JSON: UTF-16 and UTF-32, NaN, Infinity and lone surrogates. A body that
msgspec refuses is read as they do (`as_python`).
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import brotli
import msgspec
import numpy as np
import zstandard
from msgspec import Raw
from numpy.typing import NDArray

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.outcome import Cause

STREAMS_MAX = 1_024  # gzip members or zstd frames per body; bounds the CPU time of many empty ones
ZSTD_WINDOW_MAX = 8 * 1024**2  # bytes; senders must not use a larger window (RFC 9659)
EXPANDED_MIN, RATIO_MAX = 2 * 1024**2, 64  # decoded bytes always allowed, and per compressed byte
STRUCTURE_MAX = 98_304  # brackets, colons and strings of a body, which bounds the Python objects it becomes
COMMAS_MAX = 1_048_576  # of a body, which bounds the time to skip token ids
PYTHON_MAX = 32_768  # of both, in a body that Python must read, which costs more
UNCOUNTED_BYTES = 65_536  # a smaller body cannot have much more
_CHUNK_BYTES = 65_536  # input per call of zlib; bounds the copy it makes of the data after a gzip member
_COUNTED_BYTES, _STEP_BYTES = 256 * 1024, 1024**2  # per step of counting, roughly and exactly
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # formats, as zlib's `wbits`
_ZSTD_FRAMES = (b"\xb5\x2f\xfd", b"\x2a\x4d\x18")  # within the magic numbers of data and of skippable frames
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode


def decode_body(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Decode the content-encoding (identity, gzip, deflate, zstd or br) and remove a byte order mark.

    Returns `body` itself if it has neither. Raises BodyTooLarge if the result is longer than `limit` or than
    `RATIO_MAX` allows (decoding stops one byte over it), UnsupportedEncoding for other encodings, and BadBody
    `bad_encoding` for corrupt or truncated data.
    """
    if len(body) > limit:
        raise BodyTooLarge(limit)
    if not content_encoding:
        return _unmarked(body)
    limit = min(limit, max(EXPANDED_MIN, RATIO_MAX * len(body)))
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
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
    return _unmarked(plain)


def _unmarked(body: bytes) -> bytes:
    """Without a byte order mark; with two, Python refuses the body, so nothing is removed."""
    if body.startswith(_BYTE_ORDER_MARK) and json.detect_encoding(body[3:7]) == "utf-8":
        return body[3:]
    return body


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
            # The reader accepts truncated data; most senders write the size (else it is -1).
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


def check_structure(
    body: bytes, most: int = STRUCTURE_MAX, commas: int = COMMAS_MAX, roughly: bool = False
) -> None:
    """Raise BadBody `too_many_parts`, before anything is built; `roughly` counts within strings as well."""
    if len(body) > UNCOUNTED_BYTES:
        # Text has such characters too, so only many of them are counted exactly. A colon follows a string.
        for rough, exact, limit in ((b'"{', b'[{":', most), (b",", b",", commas)):
            many = len(body) > limit and occurrences(body, rough, limit) > limit
            if many and (roughly or structure(body, exact) > limit):
                raise BadBody(Cause.TOO_MANY_PARTS)


def occurrences(body: bytes, marks: bytes, most: int) -> int:
    """Number of `marks` in a body and its strings, exact up to `most`. `{` also counts `[`."""
    read, found = np.frombuffer(body, np.uint8), 0
    for start in range(0, len(body), _COUNTED_BYTES):
        folded = read[start : start + _COUNTED_BYTES] | 32  # the bit in which [ and { differ
        for mark in marks:
            found += int(np.count_nonzero(folded == mark))
        if found > most:
            break
    return found


def structure(body: bytes, marks: bytes, step: int = _STEP_BYTES) -> int:
    """Number of strings, and of `marks` outside of strings; exact for a body that is JSON."""
    counted = np.zeros(256, bool)
    counted[list(marks)] = True
    return sum(int(np.count_nonzero(counted[read] & ~within)) for read, within in _strings(body, step))


def top_level(body: bytes, step: int = _STEP_BYTES) -> bytes:
    """An object that is too large to decode, with emptied members; raises BadBody if it still is."""
    depth, kept = 0, b""
    for read, within in _strings(body, step):
        folded = np.where(within, 0, read | 32)  # [ and {, and ] and }, differ in this bit
        opens, closes = folded == ord("{"), folded == ord("}")
        levels = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32) + depth
        kept += read[levels - opens <= 1].tobytes()
        depth = int(levels[-1]) if len(levels) else depth
        if len(kept) > step:
            raise BadBody(Cause.TOO_MANY_PARTS)
    return kept


def _strings(body: bytes, step: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """A body in pieces without escapes, and which bytes are within strings, with the opening quotes."""
    start, inside = 0, False
    while start < len(body):
        piece = body[start : start + step]
        start += len(piece)
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and start < len(body):
            piece, start = piece[:-1], start - 1  # an escape continues in the next piece
        read = np.frombuffer(piece.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
        within = np.logical_xor.accumulate(read == ord('"')) ^ inside
        yield read, within
        inside = bool(within[-1]) if len(within) else inside


def as_python(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """A body as `json.loads` reads it: as JSON for msgspec, and the object, for edits; raises BadBody.

    The JSON has `?` for lone surrogates and null for numbers that are not finite.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        check_structure(text.encode("utf-8", "surrogatepass"), PYTHON_MAX, PYTHON_MAX)
        found = json.loads(text)
        number = lambda text: value if math.isfinite(value := float(text)) else None  # noqa: E731
        finite = json.loads(text, parse_constant=lambda _: None, parse_float=number)
        strict = json.dumps(finite, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        raise BadBody(Cause.TOO_DEEP) from None
    except ValueError:
        raise BadBody(Cause.NOT_JSON) from None
    if not isinstance(found, dict):
        raise BadBody(Cause.WRONG_TYPE)
    return strict, found


def set_members(body: bytes | dict[str, Any], members: Mapping[tuple[str, ...], object]) -> bytes:
    """Encode the JSON object `body` again with the member at each path set to its value, in order.

    A value on a path that is not an object is replaced with one. New members come last. A value is any
    JSON value or `msgspec.Raw`. Other values keep their bytes; white space between members is dropped,
    and of duplicate keys the last stays (docs/adr/0012-edits-reencode-the-top-level.md). A body from
    `as_python` is encoded as Python does. Raises BadBody if the body is not exactly one JSON object.
    """
    edited: dict[str, Any] = {**body} if isinstance(body, dict) else members_of(body)
    for path, value in members.items():
        inner = edited
        for key in path[:-1]:
            inner[key] = _object(inner.get(key))
            inner = inner[key]
        inner[path[-1]] = value
    if isinstance(body, dict):
        return json.dumps(edited, default=lambda raw: json.loads(bytes(raw))).encode()
    return _encode(edited)


def append_members(body: bytes, members: Mapping[tuple[str, ...], object]) -> bytes:
    """Like `set_members` at the top level, for an object too large to decode: the last key counts."""
    ends = body.rstrip(b" \t\r\n")
    if not ends.endswith(b"}"):
        raise BadBody(Cause.NOT_JSON)
    new = _encode({path[0]: value for path, value in members.items() if len(path) == 1})
    return b",".join((memoryview(ends)[:-1], memoryview(new)[1:]))


def members_of(text: bytes | Raw) -> dict[str, Any]:
    """The members of a JSON object, undecoded; raises BadBody."""
    try:
        return _MEMBERS.decode(text)
    except msgspec.ValidationError:
        raise BadBody(Cause.WRONG_TYPE) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadBody(Cause.NOT_JSON) from None


def _object(value: object) -> dict[str, Any]:
    """The members of an object on a path, which is either raw or already decoded; empty for other values."""
    if isinstance(value, dict):
        return value
    return members_of(value) if isinstance(value, Raw) and bytes(value).startswith(b"{") else {}
