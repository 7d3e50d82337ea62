"""A real API server takes every object that we ship or write, and keeps all of its fields.

`make test-kubernetes` runs this. `SEMROUTE_CRDS` names a folder with the CRDs of custom resources.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ASSETS, STRICT, Server, lost
from kubernetes_objects import Json, documents, is_core, label, plain, shipped

CRDS = os.environ.get("SEMROUTE_CRDS", "")
pytestmark = pytest.mark.skipif(not ASSETS, reason="needs an API server: make test-kubernetes")
ALL = shipped()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("api"))
    try:
        running.start()
        for path in sorted(Path(CRDS).rglob("*.yaml")) if CRDS else ():
            for crd in documents(path.read_text()):
                running.install(crd)
        running.discover()
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize(("source", "document"), ALL, ids=label)
def test_the_api_server_takes_and_keeps_every_object(server: Server, source: str, document: Json) -> None:
    known = server.older(document)
    assert server.wrong(known) == ""
    if known != document:
        pytest.skip(f"Kubernetes {server.version} takes a {document['kind']}, but without what came later")


def test_the_api_server_merges_the_patch_into_a_gateways_deployment(server: Server) -> None:
    if server.minor < 29:
        pytest.skip(f"Kubernetes {server.version} has no native sidecars")
    [text] = [each["data"]["patch.yaml"] for _, each in ALL if each["metadata"]["name"] == "semroute-patch"]
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "envoy", "image": "envoy"}]}}
    gateway = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gateway"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod},
    }
    path = server.path(gateway)
    server.http.post(path, json=gateway).raise_for_status()
    patch = plain(text)
    as_merged = {"content-type": "application/strategic-merge-patch+json"}
    merged = server.http.patch(f"{path}/gateway", json=patch, params=STRICT, headers=as_merged)
    assert merged.status_code == 200, merged.text
    assert [*lost(patch, merged.json(), ""), *lost(gateway, merged.json(), "")] == []


@pytest.mark.parametrize("change", [{"replica": 1}, {"selector": {"matchLabels": {"a": "b"}}}], ids=str)
def test_the_api_server_refuses_or_does_not_keep_a_broken_deployment(server: Server, change: Json) -> None:
    document = server.older(next(each for _, each in ALL if each["kind"] == "Deployment"))
    document["spec"].update(change)
    assert server.wrong(document)


def test_the_api_server_does_not_keep_an_unknown_field_of_a_custom_resource(server: Server) -> None:
    found = [
        each for _, each in ALL if not is_core(each) and (each["apiVersion"], each["kind"]) in server.kinds
    ]
    if not found:
        pytest.skip("SEMROUTE_CRDS names no folder with CRDs")
    for document in copy.deepcopy(found):
        document["spec"]["unknown"] = 1
        assert server.wrong(document), label(document)
