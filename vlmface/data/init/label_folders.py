"""A folder of folders that are named by their label."""

from __future__ import annotations

import os
from pathlib import Path

from vlmface.data.init import divide, labels
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.lines import EXAMPLES, counted, line
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.folders import split_folders
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES


def look_at_folders(path: Path, target: Path, choices: Choices) -> Finding:
    """What a folder of label folders holds. Raises UserError for what must be named."""
    parts = split_folders(path)
    counts: dict[str, int] = {}
    examples: list[str] = []
    for top in parts or [path]:
        for child in sorted(top.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                pictures_of_label = [
                    p for p in sorted(child.rglob("*")) if p.name.lower().endswith(SUFFIXES)
                ]
                if pictures_of_label:
                    counts[child.name] = counts.get(child.name, 0) + len(pictures_of_label)
                    examples.append(str(pictures_of_label[0].relative_to(path)))
    if not counts:
        raise UserError(
            f"{path} holds no table and no pictures in folders that are named by their label: "
            "give a table with a column of labels, or sort the pictures into such folders. "
            f"`vlmface predict {path} --model MODEL` asks a model about pictures without labels"
        )
    where = f"{path}, folders"
    guess = labels.guess_labels(counts, choices.labels, where, labels.space_name(path))
    present = {SPLIT_WORDS[part.name.lower()] for part in parts}
    taken = divide.shares(present, sum(counts.values()))
    content = FileContent(
        source=f"the folder {path.name}",
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options={"labels": guess.mapping} if guess.mapping else {},
        splits={"by": "image", **taken, "seed": 0} if taken else None,
        label_space=labels.definition_in(guess, target),
    )
    lines = [
        f"{path}: {sum(counts.values()):,} pictures in folders named by label",
        "",
        line("label", "folder", counted(guess)),
        line("", "", "people are not known: splits go by picture (see the YAML file)"),
        "",
        *(f"  {example}" for example in examples[:EXAMPLES]),
    ]
    return Finding(content, lines)
