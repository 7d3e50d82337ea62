"""Answer questions about Envoy's protocol from the xds-protos package, as a script in its own process.

xds-protos owns import names that this project's environment uses for other packages, so the test installs it
into a directory apart and runs `python -I -S xds_reference.py DIRECTORY`. Standard input is a JSON object:

    {"encode": [[message name, dict], ...], "decode": [[message name, hex], ...]}

and standard output one with the answers in the same order, and the descriptors of the protocol's files:

    {"encoded": [hex, ...], "decoded": [dict, ...], "files": [hex of a FileDescriptorProto, ...]}
"""

from __future__ import annotations

import importlib
import json
import sys

MODULES = (
    "envoy.service.ext_proc.v3.external_processor_pb2",
    "envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2",
    "envoy.config.core.v3.base_pb2",
    "envoy.type.v3.http_status_pb2",
    "envoy.service.accesslog.v3.als_pb2",
    "envoy.data.accesslog.v3.accesslog_pb2",
)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    modules = [importlib.import_module(name) for name in MODULES]
    json_format = importlib.import_module("google.protobuf.json_format")
    asked = json.load(sys.stdin)
    encoded = [
        json_format.ParseDict(content, getattr(modules[0], name)()).SerializeToString().hex()
        for name, content in asked["encode"]
    ]
    decoded = [
        json_format.MessageToDict(
            getattr(modules[0], name).FromString(bytes.fromhex(wire)), preserving_proto_field_name=True
        )
        for name, wire in asked["decode"]
    ]
    files = [module.DESCRIPTOR.serialized_pb.hex() for module in modules]
    json.dump({"encoded": encoded, "decoded": decoded, "files": files}, sys.stdout)


if __name__ == "__main__":
    main()
