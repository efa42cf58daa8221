"""Training of CLIP models."""
