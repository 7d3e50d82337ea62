"""Converts text to framed token ids. A long text keeps its head and its tail."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from semroute_extproc.encoder.manifest import EncoderSpec
from semroute_extproc.errors import BundleError
from semroute_extproc.request.text import clip, surface_features

HEAD_SHARE = 2 / 3  # Share of the window that the head of a truncated text gets; the tail gets the rest


@dataclass(frozen=True, slots=True)
class Framed:
    """One input of the encoder; see `RawOutput` for the last three."""

    ids: list[int]
    surface: list[float]
    tokens: int
    truncated: bool
    unk_share: float


class Framer:
    """Frames text for one encoder, without the tokenizer's own padding and truncation. Thread-safe."""

    def __init__(self, path: Path, spec: EncoderSpec) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise BundleError(f"{path}: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._spec = spec

    def frame(self, text: str) -> Framed:
        """Frame one text: `[CLS] … [SEP]` in at most `window` ids.

        To bound the cost, a very long text is clipped first and its token count is scaled up.
        """
        spec, clipped = self._spec, clip(text)
        ids: list[int] = self._tokenizer.encode(clipped, add_special_tokens=False).ids
        tokens = len(ids) if clipped is text else round(len(ids) * len(text) / len(clipped))
        room = spec.window - 2
        truncated = clipped is not text or len(ids) > room
        if len(ids) > room:
            head = round(room * HEAD_SHARE)
            ids = ids[:head] + ids[head - room :]
        unk_share = ids.count(spec.unk_id) / max(len(ids), 1)
        framed = [spec.cls_id, *ids, spec.sep_id]
        return Framed(framed, surface_features(clipped), tokens, truncated, unk_share)
