"""An Envoy external processor that routes LLM requests to vLLM pools by their content."""

__version__ = "0.1.0"
