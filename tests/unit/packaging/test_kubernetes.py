"""Kubernetes accepts every object that we ship or write, and so do the CRDs of the custom resources."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kubernetes_objects import (
    FIELDS,
    PACKAGED,
    VERSIONS,
    Json,
    given_crds,
    is_core,
    label,
    npm_folder,
    shipped,
    wrong_fields,
    wrong_for,
    wrong_for_packages,
)

ALL = shipped()
CUSTOM = [each for _, each in ALL if not is_core(each)]


def broken(kind: str, change: dict[str, Any]) -> Json:
    document = copy.deepcopy(next(each for _, each in ALL if each["kind"] == kind))
    document["spec"].update(change)
    return document


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("source", "document"), [each for each in ALL if is_core(each[1])], ids=label)
def test_kubernetes_knows_every_field_of_its_own_kinds(source: str, document: Json, version: str) -> None:
    assert wrong_for(document, version) == ""


def test_kubernetes_refuses_a_field_that_does_not_exist() -> None:
    assert wrong_for(broken("PodDisruptionBudget", {"maxUnavailible": 1}), VERSIONS[0])


def test_every_custom_kind_is_checked_by_a_package_or_by_the_fields_file() -> None:
    for document in CUSTOM:
        assert document["apiVersion"].partition("/")[0] in PACKAGED or document["kind"] in FIELDS


@pytest.mark.parametrize("document", [each for each in CUSTOM if each["kind"] in FIELDS], ids=label)
def test_a_custom_resource_has_only_fields_that_its_crd_has(document: Json) -> None:
    assert wrong_fields(document) == ""


def test_a_custom_resource_with_another_field_or_value_is_refused() -> None:
    assert wrong_fields(broken("GatewayExtension", {"extproc": {}}))
    assert wrong_fields(
        broken("TrafficPolicy", {"targetRefs": [{"group": "", "kind": "Service", "name": "a"}]})
    )


def test_the_packaged_crds_accept_every_object_of_their_groups() -> None:
    folder = npm_folder()
    if folder is None:
        pytest.skip("the npm packages with the CRDs cannot be installed")
    found = [each for each in CUSTOM if each["apiVersion"].partition("/")[0] in PACKAGED]
    assert {each["kind"] for each in found} >= {
        "HTTPRoute",
        "EnvoyExtensionPolicy",
        "EnvoyFilter",
        "VirtualService",
        "PodMonitor",
        "ScaledObject",
    }
    wrong = [
        broken("HTTPRoute", {"rules": [{"timeouts": {"request": "0"}}]}),
        broken("PodMonitor", {"podMetricsEndpoints": [{"interval": "often"}]}),
        broken("EnvoyExtensionPolicy", {"extProc": [{"backendRefs": [{"name": "a"}], "failOpen": "yes"}]}),
        *(broken(kind, {"unknown": 1}) for kind in sorted({each["kind"] for each in found})),
        broken("HTTPRoute", {"rules": [{"timeouts": {"requests": "0s"}}]}),
    ]
    said = wrong_for_packages(folder, [*found, *wrong])
    assert [f"{label(each)}: {text}" for each, text in zip(found, said, strict=False) if text] == []
    assert all(said[len(found) :]), "a wrong value and an unknown field are found"


def test_the_given_crds_accept_every_object() -> None:
    crds = given_crds()
    if not crds:
        pytest.skip("SEMROUTE_CRDS names no folder with CRDs")
    for document in CUSTOM:
        if schema := crds.get((document["apiVersion"], document["kind"])):
            found = Draft202012Validator(schema).iter_errors(document)
            assert [f"{label(document)}: {error.json_path}: {error.message}" for error in found] == []


def test_a_given_crd_refuses_a_field_that_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {}}}}}
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "g.io",
            "names": {"kind": "K"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": spec}}],
        },
    }
    (tmp_path / "k.yaml").write_text(json.dumps(crd))
    monkeypatch.setenv("SEMROUTE_CRDS", str(tmp_path))
    validator = Draft202012Validator(given_crds()["g.io/v1", "K"])
    assert validator.is_valid({"spec": {"a": 1}, "metadata": {"name": "b"}})
    assert not validator.is_valid({"spec": {"b": 1}})


def test_the_patch_makes_a_valid_deployment_of_a_gateways() -> None:
    [proxy] = [each for _, each in ALL if each["kind"] == "EnvoyProxy"]
    patch = proxy["spec"]["provider"]["kubernetes"]["envoyDeployment"]["patch"]["value"]["spec"]["template"][
        "spec"
    ]
    labels = {"matchLabels": {"a": "b"}}
    [envoy] = patch["containers"]
    pod = {**patch, "containers": [{**envoy, "image": "envoy"}]}
    template = {"metadata": {"labels": labels["matchLabels"]}, "spec": pod}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gateway"},
        "spec": {"selector": labels, "template": template},
    }
    for version in VERSIONS:
        assert wrong_for(deployment, version) == ""
    volumes = {each["name"] for each in patch["volumes"]}
    mounts = [*envoy["volumeMounts"], *patch["initContainers"][0]["volumeMounts"]]
    assert {each["name"] for each in mounts} == volumes
