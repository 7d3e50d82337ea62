"""A real API server for Kubernetes with its etcd, and what it says against an object. No controller runs.

Both are in the folder `KUBEBUILDER_ASSETS`, as for envtest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from kubernetes_objects import Json
from semroute_demo.process import HTTP, Process, free_port, wait_until

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
STRICT = {"fieldValidation": "Strict"}  # a server before 1.25 ignores it and drops unknown fields
NEWER = (
    (21, r'"policy/v1"', '"policy/v1beta1"'),
    (23, r'"autoscaling/v2"', '"autoscaling/v2beta2"'),
    (24, r'"grpc": \{"port": (\d+), "service": "[^"]*"\}', r'"tcpSocket": {"port": \1}'),
    (26, r'"unhealthyPodEvictionPolicy": "\w+", ', ""),
)
"""First minor version of Kubernetes that has what the chart uses, and what stands in for it before."""


class Server:
    """An API server and its etcd, on loopback."""

    def __init__(self, folder: Path) -> None:
        store, peers, port = (free_port() for _ in range(3))
        keys, tokens = folder / "keys", folder / "tokens.csv"
        tokens.write_text("token,admin,admin,system:masters\n")
        etcd = {
            "data-dir": folder / "etcd",
            "listen-client-urls": (client := f"http://127.0.0.1:{store}"),
            "advertise-client-urls": client,
            "listen-peer-urls": (peer := f"http://127.0.0.1:{peers}"),
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        options = {
            "etcd-servers": client,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            "secure-port": port,
            "cert-dir": keys,
            "token-auth-file": tokens,
            "service-account-issuer": "https://localhost",
            "service-account-key-file": keys / "apiserver.key",  # which it makes
            "service-account-signing-key-file": keys / "apiserver.key",
        }
        self.processes = [
            Process(name, [f"{ASSETS}/{name}", *(f"--{key}={value}" for key, value in given.items())], log)
            for name, given, log in (
                ("etcd", etcd, folder / "etcd.log"),
                ("kube-apiserver", options, folder / "kube-apiserver.log"),
            )
        ]
        self.http = httpx2.Client(
            base_url=f"https://127.0.0.1:{port}",
            headers={"authorization": "Bearer token"},
            verify=False,  # the certificate is its own
            trust_env=False,
            timeout=30,
        )
        self.health = f"{client}/health"
        self.groups, self.namespaces = set[str](), set[str]()
        self.kinds: dict[tuple[str, str], tuple[str, bool]] = {}
        """API version and kind, to the path with a gap for the namespace, and whether it has one."""

    def start(self) -> None:
        etcd, server = self.processes
        etcd.start(lambda: HTTP.get(self.health).status_code == 200, 30)
        server.start(lambda: self.http.get("/readyz").status_code == 200, 120)
        self.version = str(self.get("/version")["gitVersion"])
        self.minor = int(self.version.split(".")[1])

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def install(self, crd: Json) -> None:
        made = self.http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=crd)
        assert made.status_code == 201, made.text
        for version in [each["name"] for each in crd["spec"]["versions"] if each["served"]]:
            self.groups.add(group := f"{crd['spec']['group']}/{version}")
            path = f"/apis/{group}/{crd['spec']['names']['plural']}"
            wait_until(lambda path=path: self.http.get(path).status_code == 200, 30, path)

    def discover(self) -> None:
        """Read which kinds it serves."""
        for group in self.get("/apis")["groups"]:
            self.groups |= {each["groupVersion"] for each in group["versions"]}
        for version, path in {"v1": "/api/v1", **{each: f"/apis/{each}" for each in self.groups}}.items():
            found = self.http.get(path)
            for each in found.json()["resources"] if found.status_code == 200 else ():
                if "/" not in each["name"]:
                    self.kinds[version, each["kind"]] = f"{path}/%s{each['name']}", each["namespaced"]

    def path(self, document: Json) -> str:
        """Where objects of its kind are, in its namespace, which is made; skips if the kind is not served."""
        kind = document["apiVersion"], document["kind"]
        if kind not in self.kinds:
            pytest.skip(f"Kubernetes {self.version} serves no {' '.join(kind)}")
        pattern, namespaced = self.kinds[kind]
        namespace = document["metadata"].get("namespace", "semroute")
        if ("v1", "Namespace") in self.kinds and namespace not in self.namespaces:
            self.http.post("/api/v1/namespaces", json={"metadata": {"name": namespace}}).raise_for_status()
            self.namespaces.add(namespace)
        return pattern % (f"namespaces/{namespace}/" if namespaced else "")

    def older(self, document: Json) -> Json:
        """An object without what this server is too old for."""
        text = json.dumps(document)
        for minor, pattern, replacement in NEWER:
            text = re.sub(pattern, replacement, text) if self.minor < minor else text
        return dict(json.loads(text))

    def wrong(self, document: Json) -> str:
        """What it says against an object, or which fields it does not keep; empty if nothing."""
        path = self.path(document)
        for parameters in ({**STRICT, "dryRun": "All"}, STRICT):
            answer = self.http.post(path, json=document, params=parameters)
            if answer.status_code != 201:
                return f"{answer.status_code}: {answer.json()['message']}"
        stored = self.get(named := f"{path}/{document['metadata']['name']}")
        self.http.delete(named).raise_for_status()
        return "; ".join(lost(document, stored, ""))


def lost(sent: Any, stored: Any, path: str) -> Iterator[str]:
    """What is not stored as it was sent. Defaults may be added."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        for key, value in sent.items():
            yield from lost(value, stored.get(key), f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        for index, (one, other) in enumerate(zip(sent, stored, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif sent != stored and str(sent) != stored:  # a quantity becomes text
        yield f"{path}: {sent!r} is {stored!r}"
