"""A metric: one decorated function."""

from vlmface.metrics import metric


@metric("dark pictures missed", applies_to="attributes", higher_is_better=False)
def dark_missed(row, scope):
    """Of the pictures that are dark, those that are called something else."""
    truth = row["truth"]["attributes"]["context"]
    return None if truth != "dark" else row["label"] != truth
