"""Servers: vLLM for a run, and the HTTP gateway."""
