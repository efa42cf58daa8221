"""Tools around a run: memory estimates, row inspection, merging, model cards."""
