"""The encoder: text in, one raw output out, before a deadline.

protocol  (this file)  what the pipeline asks of any encoder
tokens                 text to framed token ids
onnx                   one ONNX Runtime session, its provider checked
cuda                   the same on a GPU: repeated shapes, smaller passes where memory is short
batcher                bounded queue and lanes in front of a session
failover               a GPU's batcher, and the CPU's while the GPU fails
classifier             the bundle of the text's language, its pass and its calibration
offline                a file of texts, without a server
"""

from __future__ import annotations

from typing import Protocol

from semroute_extproc.encoder.signals import RawOutput


class Encoder(Protocol):
    """Anything that gives a raw output for a text."""

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """Encode `text` before `deadline` (the running loop's clock, seconds).

        Raises EncoderUnavailable when there is no output in time. Cancelling the call drops the
        queued work.
        """
        ...

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        ...

    def describe(self) -> dict[str, str]:
        """The provider in use, the threads and the graph, for the log and the metrics."""
        ...

    async def close(self) -> None:
        """Stop; queued work gets EncoderUnavailable("closed")."""
        ...
