"""The demonstration: a real Envoy, the sidecar and two simulated vLLM pools on one machine."""
