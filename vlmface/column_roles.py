"""What `vlmface data init` looks for among the columns of a table.

Imports nothing: the command line lists the roles in its help.
"""

from __future__ import annotations

COLUMN_ROLES = (
    "image",
    "video",
    "split",
    "subject",
    "label",
    "valence",
    "arousal",
    "age",
    "age_group",
    "gender",
    "race",
    "rationale",
)
