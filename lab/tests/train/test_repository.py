"""What `bundle export --for` writes: a repository that a model server runs as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from google.protobuf import text_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from protocol_reference import embedded_file, installed
from ruamel.yaml import YAML

from semroute_extproc.cli import main
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.onnx import OnnxModel, inputs

SHIPPED = bundle.load(bundle.default_bundle(), ("cpu",))
FILES = ["graph.json", "graph.py", "model.int8.onnx"]


def export(target: Path, server: str, *options: str, source: Path = SHIPPED.path) -> Result:
    command = ["bundle", "export", str(source), str(target), "--for", server, *options]
    return CliRunner().invoke(main, command)


def graph_module(folder: Path) -> ModuleType:
    """The exported code, as the server imports it."""
    spec = importlib.util.spec_from_file_location("exported_graph", folder / "graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("server", "runtime", "around"),
    [
        ("triton", ["model.py"], ["semroute-minilm/config.pbtxt"]),
        ("mlserver", ["model-settings.json", "semroute_runtime.py"], ["settings.json"]),
        (
            "kserve",
            ["model-settings.json", "semroute_runtime.py"],
            ["inferenceservice.yaml", "settings.json"],
        ),
    ],
)
def test_each_server_gets_the_files_that_it_reads(
    tmp_path: Path, server: str, runtime: list[str], around: list[str]
) -> None:
    result = export(tmp_path / "out", server)
    assert result.exit_code == 0, result.output
    version = f"semroute-minilm/{SHIPPED.model_version}"
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*")}
    files = {file for file in found if (tmp_path / "out" / file).is_file()}
    assert files == {"README.md", *around, *(f"{version}/{name}" for name in (*FILES, *runtime))}
    assert f"--for {server}" in (tmp_path / "out" / "README.md").read_text()


def test_the_parts_of_a_graph_in_several_files_are_exported(tmp_path: Path) -> None:
    multilingual = bundle.load(SHIPPED.path.parent / bundle.MULTILINGUAL_BUNDLE, ("cpu",))
    assert export(tmp_path, "triton", source=multilingual.path).exit_code == 0
    folder = tmp_path / multilingual.manifest.name / multilingual.model_version
    assert (folder / "table.bin").read_bytes() == (multilingual.path / "table.bin").read_bytes()


def test_a_second_bundle_joins_the_repository_and_a_second_time_is_refused(tmp_path: Path) -> None:
    for name in (bundle.DEFAULT_BUNDLE, bundle.MULTILINGUAL_BUNDLE):
        assert export(tmp_path, "mlserver", source=SHIPPED.path.parent / name).exit_code == 0
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"semroute-minilm", "semroute-use"}
    again = export(tmp_path, "mlserver")
    assert (again.exit_code, "this revision is there already" in again.output) == (78, True)


def test_a_device_without_a_graph_is_refused(tmp_path: Path) -> None:
    result = export(
        tmp_path, "triton", "--device", "cuda", source=SHIPPED.path.parent / bundle.MULTILINGUAL_BUNDLE
    )
    assert (result.exit_code, "no graph for device 'cuda'" in result.output) == (78, True)


@pytest.mark.parametrize(
    ("options", "batch", "instances", "kind"),
    [((), 1, 2, "KIND_CPU"), (("--threads", "8", "--texts", "4"), 4, 8, "KIND_CPU")],
)
def test_tritons_configuration_describes_the_graph_and_batches(
    tmp_path: Path, options: tuple[str, ...], batch: int, instances: int, kind: str
) -> None:
    package = installed("tritonclient-2.73.0", "tritonclient==2.73.0")
    described = embedded_file(package / "tritonclient" / "grpc" / "model_config_pb2.py")
    pool = DescriptorPool()
    pool.Add(described)
    model_config = GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    assert export(tmp_path, "triton", *options).exit_code == 0
    text = (tmp_path / "semroute-minilm" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config())
    assert (config.name, config.max_batch_size) == ("semroute-minilm", batch)
    assert config.HasField("dynamic_batching")
    [group] = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (instances, kind)
    widths = {each.name: list(each.dims) for each in config.output}
    assert (widths["sentence_embedding"], widths["difficulty_logit"]) == ([384], [1])


def test_on_a_gpu_a_pass_is_padded_to_a_few_lengths_and_has_many_texts(tmp_path: Path) -> None:
    assert export(tmp_path, "triton", "--device", "cuda").exit_code == 0
    folder = tmp_path / "semroute-minilm" / SHIPPED.model_version
    settings = json.loads((folder / "graph.json").read_text())
    assert (settings["device"], settings["texts_max"], settings["threads"]) == ("cuda", 128, 1)
    assert (settings["lengths"][0], settings["lengths"][-1]) == (16, SHIPPED.manifest.encoder.window)
    assert (folder / "model.fp16.onnx").is_file()
    assert not (folder / "model.int8.onnx").exists()
    config = (tmp_path / "semroute-minilm" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    assert "max_batch_size: 128" in config


def test_kserve_gets_a_service_with_the_port_that_the_server_listens_on(tmp_path: Path) -> None:
    assert export(tmp_path, "kserve", "--threads", "4").exit_code == 0
    service = YAML(typ="safe").load((tmp_path / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    [container] = service["spec"]["predictor"]["containers"]
    assert container["ports"] == [{"name": "h2c", "containerPort": 8081, "protocol": "TCP"}]
    assert container["resources"]["requests"] == {"cpu": "4"}


def feeds(model: OnnxModel, text: str) -> dict[str, Any]:
    framed = model.framer.frame(text)
    return inputs([framed], len(framed.ids), 0)


def test_the_exported_code_runs_one_text_as_the_sidecar_does(tmp_path: Path) -> None:
    export(tmp_path, "triton")
    folder, model = tmp_path / "semroute-minilm" / SHIPPED.model_version, OnnxModel(SHIPPED, "cpu")
    [found] = graph_module(folder).Graph(folder).run([feeds(model, "Prove it.")])
    [expected] = model.run([model.framer.frame("Prove it.")])
    np.testing.assert_array_equal(found["sentence_embedding"][0], expected.embedding)
    assert found["difficulty_logit"].tolist() == [[expected.difficulty_logit]]


def test_a_batch_is_padded_and_every_request_gets_its_own_rows(tmp_path: Path) -> None:
    export(tmp_path, "triton", "--texts", "8")
    folder, model = tmp_path / "semroute-minilm" / SHIPPED.model_version, OnnxModel(SHIPPED, "cpu")
    texts = ["hi", "Prove that there are infinitely many primes.", "word " * 40]
    requests = [feeds(model, text) for text in texts]
    double = {name: np.concatenate([each, each]) for name, each in requests[1].items()}
    found = graph_module(folder).Graph(folder).run([*requests, double])
    assert [len(each["sentence_embedding"]) for each in found] == [1, 1, 1, 2]
    for text, each in zip(texts, found, strict=False):
        [expected] = model.run([model.framer.frame(text)])
        assert float(each["sentence_embedding"][0] @ expected.embedding) > 0.95
    np.testing.assert_array_equal(found[3]["sentence_embedding"][0], found[3]["sentence_embedding"][1])
