"""Request bodies as sent to request bodies as meant: content-encodings.

Pure.
"""

from __future__ import annotations

import zlib

from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.outcome import Cause

GZIP_MEMBERS_MAX = 1_024
"""Most members of a multi-member gzip body; an empty one costs us more than its 20 bytes cost."""

_CHUNK_BYTES = 65_536
"""Input given to zlib at a time, which bounds what it copies at the end of a member."""

_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def decode_body(body: bytes, content_encoding: str, limit: int) -> bytes:
    """The body without its content-encoding; `body` itself where there is none.

    Identity and gzip (`x-gzip`, several members) are read. Raises BodyTooLarge if it is longer
    than `limit` bytes, of which never more than one byte too many is produced, UnsupportedEncoding
    for other encodings, BadBody `bad_gzip` if it is broken or cut short.
    """
    if len(body) > limit:
        raise BodyTooLarge(limit)
    if not content_encoding:
        return body
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return body
    if codings in (["gzip"], ["x-gzip"]):
        return _gunzip(body, limit)
    raise UnsupportedEncoding(content_encoding)


def _gunzip(body: bytes, limit: int) -> bytes:
    """The data of all members; zeros after the last one are padding."""
    pieces: list[bytes] = []
    room = limit
    member = zlib.decompressobj(_GZIP_WINDOW)
    members = 1
    position = 0
    pending = b""
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
