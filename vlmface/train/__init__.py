"""Training loops over the encoder of `vlmface.encode`."""
