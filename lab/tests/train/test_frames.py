"""Framed texts as batches: padded, of similar length, every row once."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.frames import LENGTH_JITTER, Frames  # noqa: E402

from semroute_extproc.encoder.preprocess import Framed  # noqa: E402

PAD = 9


def framed(length):
    return Framed(list(range(1, length + 1)), [float(length), 0.5], length, False, 0.0)


@pytest.fixture
def frames():
    lengths = [random.Random(0).randrange(1, 60) for _ in range(100)]
    return Frames([framed(length) for length in lengths], PAD)


def lengths(frames, index):
    return [len(frames.framed[i].ids) for i in index]


def test_a_batch_is_padded_to_its_longest_text_and_masked():
    ids, mask, surface = Frames([framed(1), framed(3)], PAD).batch([1, 0])
    assert ids.tolist() == [[1, 2, 3], [1, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert surface.tolist() == [[3.0, 0.5], [1.0, 0.5]]


def test_batches_by_length_have_every_row_once_and_little_padding(frames):
    batches = list(frames.by_length(16))
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    ordered = [length for batch in batches for length in lengths(frames, batch)]
    assert ordered == sorted(ordered)


def test_shuffled_batches_have_every_row_once_and_texts_of_similar_length(frames):
    batches = frames.shuffled(10, random.Random(1))
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert max(map(len, batches)) == 10
    ranges = [max(own) - min(own) for own in (lengths(frames, batch) for batch in batches)]
    assert sorted(ranges)[len(ranges) // 2] < 3 * LENGTH_JITTER
    assert batches != frames.shuffled(10, random.Random(2))
    assert batches == frames.shuffled(10, random.Random(1))


def test_a_spread_of_indices_covers_all_texts(frames):
    assert frames.spread(10) == list(range(0, 100, 10))
    assert frames.spread(1_000) == list(range(100))


def test_some_texts_are_taken_in_the_given_order(frames):
    assert frames.take([7, 2]).framed == [frames.framed[7], frames.framed[2]]
