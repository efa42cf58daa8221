"""What several test files share: inputs, scripts, models and readers of what a run wrote."""
