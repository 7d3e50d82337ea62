"""Every object that we ship or write for Kubernetes, and what refuses a wrong one without an API server."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
from helm_python import Chart
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from semroute_extproc.cli import envoy_file

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "semroute"
RELEASE = NAMESPACE = "semroute"
VALUES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))}
"""Name to a file of values that the chart is tested with."""

VERSIONS = ("1.29", "1.37")
"""The oldest Kubernetes that the chart allows, and the newest whose schemas are installed."""

CRDS = Path(__file__).with_name("crds")
FIELDS: Mapping[str, Any] = YAML(typ="safe", pure=True).load((CRDS / "fields.yaml").read_text())
PACKAGED = (
    "gateway.envoyproxy.io",
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "monitoring.coreos.com",
    "keda.sh",
)
"""Groups whose kinds an npm package carries, as validators."""
NPM_SECONDS_MAX = 120.0


def plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def documents(text: str) -> list[Json]:
    return [each for each in YAML(typ="safe", pure=True).load_all(text) if each]


def values(name: str) -> Json:
    return dict(plain(VALUES[name].read_text()))


def rendered(given: Mapping[str, Any]) -> dict[str, str]:
    """Template to its text, after Helm has checked the values; raises what Helm raises."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(dict(given))
        made = chart.render(dict(given), name=RELEASE, namespace=NAMESPACE)
    return {path.removeprefix(f"{CHART.name}/templates/"): text for path, text in made.items()}


def chart_objects(given: Mapping[str, Any]) -> list[Json]:
    """Every object of the chart."""
    return [each for path, text in rendered(given).items() if path != "NOTES.txt" for each in documents(text)]


def gateway_objects() -> Iterator[tuple[str, Json]]:
    """The objects of each gateway's file."""
    for target, file in envoy_file.FILES.items():
        if target != "envoy":
            for each in documents((ROOT / "envoy" / file).read_text()):
                yield target, each


def shipped() -> list[tuple[str, Json]]:
    """Every object, and where it comes from."""
    examples = re.findall(r"```yaml\n(apiVersion.*?)```", (CHART / "README.md").read_text(), re.S)
    return [
        *((f"chart, {name}", each) for name in VALUES for each in chart_objects(values(name))),
        *gateway_objects(),
        *(("chart's README", plain(text)) for text in examples),
    ]


def label(value: Any) -> str:
    """The name of a case with an object."""
    return f"{value['kind']} {value['metadata']['name']}" if isinstance(value, dict) else str(value)


def is_core(document: Json) -> bool:
    """Whether Kubernetes itself knows the kind."""
    group = document["apiVersion"].partition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and group != "gateway.networking.k8s.io")


def wrong_for(document: Json, version: str) -> str:
    """What Kubernetes' own schema says against an object; empty if nothing."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


def wrong_fields(document: Json) -> str:
    """What crds/fields.yaml says against an object."""
    schema = {**FIELDS[document["kind"]], "$defs": FIELDS["$defs"]}
    return "; ".join(
        str(error.message) for error in Draft202012Validator(schema).iter_errors(document["spec"])
    )


@functools.cache
def npm_folder() -> Path | None:
    """Where the packages of crds/package.json are installed, by their hashes; None if they cannot be had."""
    if not shutil.which("npm"):
        return None
    folder = ROOT / "build" / "crds"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "validate.mjs"):
        shutil.copy(CRDS / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=NPM_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return None
    return folder if done.returncode == 0 else None


def wrong_for_packages(folder: Path, found: list[Json]) -> list[str]:
    """What the packaged CRDs say against each object."""
    done = subprocess.run(
        ["node", "validate.mjs"],
        cwd=folder,
        input=json.dumps(found).encode(),
        capture_output=True,
        check=True,
    )
    return list(json.loads(done.stdout))


def given_crds() -> dict[tuple[str, str], Json]:
    """API version and kind to the schema in the folder SEMROUTE_CRDS, closed as an API server closes it."""
    folder = os.environ.get("SEMROUTE_CRDS")
    found = {}
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        for each in documents(path.read_text()):
            for version in each["spec"]["versions"] if each["kind"] == "CustomResourceDefinition" else ():
                key = (f"{each['spec']['group']}/{version['name']}", each["spec"]["names"]["kind"])
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[key] = schema
    return found


def closed(schema: Any) -> Any:
    """A copy of a schema that allows no other fields; an API server would drop them."""
    schema = copy.copy(schema)
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) if key != "properties" else value for key, value in schema.items()}
    if isinstance(properties := schema.get("properties"), dict):
        made["properties"] = {name: closed(value) for name, value in properties.items()}
        if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made
