"""The vLLM engine: facts for its fingerprint, settings, refused configurations, differences between versions."""
