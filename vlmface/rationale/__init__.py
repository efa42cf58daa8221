"""Rationales: texts that lead from the muscles of a face to its emotion."""
