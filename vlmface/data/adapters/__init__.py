"""One module for each data set's format on disk; `vlmface.data` says what a module holds."""
