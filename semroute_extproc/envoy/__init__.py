"""Envoy's external processing protocol: the gRPC server, the stream state machine, the replies."""
