"""An Envoy external processor that routes LLM requests to vLLM pools by what they ask."""

__version__ = "0.1.0"
