"""Copying and rebuilding bundles: refused before anything is written, complete or absent."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from semroute_lab.train import graphs as publish
from semroute_lab.train.cli import bundle

from semroute_extproc.cli.exits import Exit
from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.errors import BundleError


def test_too_few_texts_are_refused_before_anything_is_made(tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("hello\n" * 5)
    run = CliRunner().invoke(
        bundle, ["quantize", str(bundles.default_bundle()), str(tmp_path / "out"), "--texts", str(few)]
    )
    assert run.exit_code == Exit.DATA
    assert "few.txt:1:: 5 texts, at least 32 are needed" in run.output
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_cuda_graph_is_refused(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("hello\n" * 40)
    own = tmp_path / "cpu"
    publish.copy_bundle(bundles.load(bundles.default_bundle()), own, "cpu")
    run = CliRunner().invoke(bundle, ["quantize", str(own), str(tmp_path / "out"), "--texts", str(texts)])
    assert run.exit_code == Exit.CONFIG
    assert "no CUDA graph" in run.output


def test_a_copy_for_one_device_leaves_out_the_other_graph(tmp_path):
    source = bundles.load(bundles.default_bundle())
    names = publish.copy_bundle(source, tmp_path / "copy", "cpu")
    assert source.manifest.graphs["cuda"] not in names
    copy = bundles.load(tmp_path / "copy")
    assert copy.manifest.graphs == {"cpu": source.manifest.graphs["cpu"]}
    assert (tmp_path / "copy" / "CARD.md").exists()


def test_a_bundle_that_does_not_load_replaces_nothing(tmp_path):
    source = bundles.load(bundles.default_bundle())
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("here")
    with pytest.raises(BundleError, match="no checksum"):
        publish.publish(source.manifest, [source.path / "tokenizer.json"], target)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (target / "old").read_text() == "here"
