"""The text of a data set's YAML file, with comments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class FileContent:
    """What `dataset_file.Definition` has, as it is written.

    Attributes:
        source: The data that it was written from, for the comment.
        dataset: A data set's name.
        root: Relative to the file.
        options: Options of the data set.
        splits: None for the splits of the data set itself.
        label_space: A name, a file, or a definition.
        prompt: What recipes train with.
    """

    source: str
    dataset: str
    root: str
    options: Mapping[str, Any]
    splits: Mapping[str, Any] | None
    label_space: str | Mapping[str, Any]
    prompt: str = "label"

    def to_yaml(self) -> str:
        """The text of the file."""
        lines = [
            f"# A data set for vlmface, written by `vlmface data init` from {self.source}.",
            "# Every key is explained in docs/your-own-data.md; change what was guessed wrongly.",
            f"dataset: {_flow(self.dataset)}",
            f"root: {_flow(self.root)}  # relative to this file",
        ]
        if self.options:
            lines.append("options:")
            lines += [f"  {name}: {_flow(value)}" for name, value in self.options.items()]
        if self.splits is not None:
            lines += ["", *self._about_splits(), f"splits: {_flow(dict(self.splits))}"]
        lines += ["", *self._labels()]
        lines += [
            "",
            "# label: the label alone; rationale: a text first; au_rationale: action units first",
            f"prompt: {_flow(self.prompt)}",
        ]
        return "\n".join(lines) + "\n"

    def _about_splits(self) -> list[str]:
        by = (self.splits or {}).get("by")
        if by is None:
            return []
        if by == "subject":
            return [
                "# Each person is in one split. The same seed gives the same splits on every "
                "machine."
            ]
        each = "frames of one video are in one split" if by == "video" else "pictures are split"
        return [
            f"# It is not known who is in a picture, so {each}, and somebody may be",
            "# in two splits, which makes test scores too high. If a column names the person,",
            "# add it to columns (subject: NAME) and set by: subject.",
        ]

    def _labels(self) -> list[str]:
        if isinstance(self.label_space, str):
            return [f"label_space: {_flow(self.label_space)}"]
        lines = ["label_space:"]
        lines += [f"  {name}: {_flow(value)}" for name, value in self.label_space.items()]
        if (scale := self.label_space.get("scale")) is not None:
            what = "" if "name" in scale else "name: what is rated, "
            meanings = f"anchors: {{{scale['min']}: a few words, {scale['max']}: a few words}}"
            return [*lines, f"  # also possible in scale: {what}{meanings}"]
        first = self.label_space["labels"][0]
        if "aliases" not in self.label_space:
            lines.append(f"  # aliases: {_flow({first: ['another word for it']})}")
        if not {"ordered", "multi_label"} & self.label_space.keys():
            lines.append("  # ordered: true  # if they are steps of a scale, the lowest first")
        return lines


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
