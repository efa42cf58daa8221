"""What recipes run from start to end: prepare, evaluate, train, evaluate, report."""
