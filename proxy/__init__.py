"""The gateway: an OpenAI-compatible streaming server in front of vLLM. `proxy/README.md` is its plan."""

__version__ = "0.1.0"
