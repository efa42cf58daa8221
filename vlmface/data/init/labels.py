"""Words of a table or names of folders as the labels of a label space."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import facs, label_spaces, scales
from vlmface.data.init import rating_columns
from vlmface.data.init.rating_columns import ScaleChoice
from vlmface.data.tables.cells import texts
from vlmface.data.tables.files import open_table
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.units import NO_UNIT
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace, normalise

_SEPARATORS = re.compile(r"\s*[;,|]\s*")
_SEVERAL = 0.2  # share of the cells with several words from which on a face has several labels
MOST_STEPS = 11  # of a scale
EMOTION_SPACES = ("emotion7", "emotion8")


@dataclass(frozen=True)
class LabelGuess:
    """The labels of a data set.

    Attributes:
        space: The label space.
        definition: It in the YAML file: a name, a file, or its definition.
        counts: {label: rows}.
        mapping: The option `labels`: words that stand for a label, or for None.
        text: What is printed of the numbers of a scale; "" for words.
    """

    space: LabelSpace
    definition: str | dict[str, Any]
    counts: dict[str, int]
    mapping: dict[str, str | None]
    text: str = ""


@dataclass(frozen=True)
class LabelChoices:
    """What the command line says about labels.

    Attributes:
        space: A label space's name or file, for --label-space.
        words: "0=anger" or the name of a data set's coding, for --labels.
        ordered: The labels from the lowest to the highest, for --ordered.
        several: Whether a face may have several labels, for --multi-label.
        scale: The scale that the labels are numbers on, for --scale.
    """

    space: str | None = None
    words: Sequence[str] = ()
    ordered: Sequence[str] = ()
    several: bool = False
    scale: ScaleChoice | None = None

    @property
    def any_given(self) -> bool:
        """Whether the command line says anything about labels."""
        return bool(
            self.space or self.words or self.ordered or self.several or self.scale is not None
        )


def guess_labels(
    words: Mapping[str, int], choices: LabelChoices, where: str, id: str, name: str = ""
) -> LabelGuess:
    """The label space of words: a built-in one if it has them all, else one of their own. Numbers
    may be ratings on a scale.

    Args:
        words: {word: rows}.
        choices: Of the command line.
        where: The column or folder, for messages.
        id: Of a label space of their own.
        name: Of the column; "" if the labels are not in one.

    Raises:
        UserError: The words are numbers without a meaning, a single one, or not in the label space
            that was named.
    """
    mapping = read_mapping(choices.words, words)
    label_counts = _apply(words, mapping)
    if not label_counts:
        raise UserError(f"{where}: there are no labels: name their column, --label COLUMN")
    if choices.space is None and len(_spellings(label_counts)) == 1:
        raise _single(next(iter(label_counts)), where)
    if (rated := _guess_scale(label_counts, choices, where, id, name)) is not None:
        return dataclasses.replace(rated, mapping=mapping)
    several = choices.several or _has_several(label_counts)
    if several:
        label_counts = _pieces(label_counts)
    numeric = [word for word in label_counts if re.fullmatch(r"[-+]?\d+(\.\d+)?", word)]
    if numeric and choices.space is None and not choices.ordered:
        raise _numbers_without_meaning(numeric, where, name)
    if choices.space is not None:
        space = label_spaces.space(choices.space)
        return LabelGuess(space, choices.space, _count(label_counts, space, where), mapping)
    spelling = _spellings(label_counts)
    if len(spelling) < 2:
        (only,) = spelling.values()
        raise _single(only, where)
    if not several and not choices.ordered and (built_in := _built_in(spelling.values())):
        return LabelGuess(built_in, built_in.id, _count(label_counts, built_in, where), mapping)
    definition = _define(id, spelling, choices.ordered, several, where)
    space = label_spaces.from_mapping({"source": id, **definition}, where)
    return LabelGuess(space, definition, _count(label_counts, space, where), mapping)


def _guess_scale(
    words: Mapping[str, int], choices: LabelChoices, where: str, id: str, name: str
) -> LabelGuess | None:
    """The scale of numbers that are ratings, or that `--scale` or `--label-space` says are; None
    for other labels."""
    others = {
        "label-space": choices.space,
        "ordered": choices.ordered,
        "multi-label": choices.several,
    }
    excluded = [option for option, value in others.items() if value]
    if choices.scale is not None and excluded:
        raise UserError(f"--scale and --{excluded[0]} exclude each other: leave one of them out")
    definition: str | dict[str, Any] | None
    if choices.space is not None:
        space, definition = label_spaces.space(choices.space), choices.space
    elif excluded or (definition := _scale_definition(words, choices.scale, id, name)) is None:
        return None
    else:
        space = label_spaces.from_mapping({"source": id, **definition}, where)
    if space.scale is None:
        return None
    counts = _count(words, space, where)
    if sum(n > 0 for n in counts.values()) < 2:
        raise _single(next(iter(words)), where)
    is_guess = choices.scale is None and choices.space is None
    text = rating_columns.text_of(space.scale, words, is_guess)
    return LabelGuess(space, definition, counts, {}, text)


def _scale_definition(
    words: Mapping[str, int], choice: ScaleChoice | None, id: str, name: str
) -> dict[str, Any] | None:
    """The label space of numbers that are ratings; None if they may be codes."""
    if choice is not None:
        content = rating_columns.chosen_scale(choice, words)
    elif (guessed := rating_columns.guess_scale(words, name)) is not None:
        content = guessed
    else:
        return None
    title = " ".join(re.sub(r"[_<>*{}\s]+", " ", name).split())[: scales.LONGEST].strip()
    named = {"name": title, **content} if title and title.isprintable() else content
    return {"id": id, "field": "context", "scale": named}


def of_action_units(units: Sequence[int], id: str) -> LabelGuess:
    """The label space of action units, of which a face has several, where the data have no other
    labels (the option `au_labels` of tables).

    Args:
        units: Their numbers.
        id: Of the label space.
    """
    definition = {
        "id": id,
        "field": "context",
        "labels": [NO_UNIT, *map(facs.name, units)],
        "aliases": {facs.name(unit): [facs.AUS[unit].name] for unit in units},
        "multi_label": True,
    }
    space = label_spaces.from_mapping({"source": id, **definition}, "the action units")
    return LabelGuess(space, definition, {}, {})


def definition_in(guess: LabelGuess, target: Path) -> str | dict[str, Any]:
    """The label space as a data set's file names it: the path of a YAML file is relative to it."""
    if isinstance(guess.definition, str) and guess.definition.endswith((".yaml", ".yml")):
        return os.path.relpath(guess.definition, target.parent)
    return guess.definition


def read_mapping(words: Sequence[str], label_counts: Mapping[str, int]) -> dict[str, str | None]:
    """{word: label or None} of --labels: pairs such as 0=anger and bored=null, the name of a data
    set's coding, or the file of a table with two columns, whose further words are ignored.

    Raises:
        UserError: It is neither, or a word does not occur.
    """
    if len(words) == 1 and words[0] in label_spaces.CODINGS:
        codes = label_spaces.CODINGS[words[0]].codes
        return {str(code): label for code, label in codes.items() if str(code) in label_counts}
    mapping: dict[str, str | None] = {}
    pairs = [part for word in words for part in word.split(",")]
    if len(words) == 1 and Path(words[0]).suffix and Path(words[0]).is_file():
        pairs = [
            pair for pair in _codebook(Path(words[0])) if _occurs(pair.split("=")[0], label_counts)
        ]
    for text in pairs:
        word, equals, label = (part.strip() for part in text.partition("="))
        if not equals or not label:
            raise UserError(
                f"--labels {text!r} is not WORD=LABEL: write 0=anger 1=disgust ..., or one of the "
                f"codings {', '.join(label_spaces.CODINGS)}"
            )
        if not _occurs(word, label_counts):
            raise UserError(f"--labels maps {word!r}, but the labels are {_listed(label_counts)}")
        mapping[word] = None if label in ("null", "none") else label
    return mapping


def _occurs(word: str, label_counts: Mapping[str, int]) -> bool:
    return normalise(word) in {normalise(other) for other in label_counts}


def _single(label: str, where: str) -> UserError:
    return UserError(
        f"{where}: all rows have the label {label!r}, but a model needs two at least to choose "
        "from: name another column with --label COLUMN"
    )


def _numbers_without_meaning(words: Sequence[str], where: str, name: str) -> UserError:
    numbers = sorted(words, key=float)
    listed = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    scale = ""
    if len(numbers) <= MOST_STEPS and all(float(number).is_integer() for number in numbers):
        scale = f"; or, if they are steps of a scale, --ordered {' '.join(numbers)}"
    of_column = f"{shlex.quote(name)}=" if name else ""
    scale += f"; or, if they are ratings, --scale {of_column}{numbers[0]}:{numbers[-1]}"
    return UserError(
        f"{where}: the labels are numbers ({listed}): say what they mean, --labels 0=anger "
        "1=disgust ... or --labels CODEBOOK.csv, a table of two columns, or that they are coded as "
        f"in a data set, --labels {' | '.join(label_spaces.CODINGS)}{scale}"
    )


def _codebook(path: Path) -> list[str]:
    """ "WORD=LABEL" of each row of a table with a column of words or numbers and one of labels."""
    table = open_table(path, TableOptions())
    if len(table.columns) != 2:
        raise UserError(
            f"--labels {path} has the columns {table.names()}, expected two: the words or numbers, "
            "and what they mean"
        )
    rows = np.arange(len(table))
    words, meanings = (texts(table, name, rows) for name in table.columns)
    return [f"{w}={m or 'null'}" for w, m in zip(words, meanings, strict=True) if w is not None]


def _apply(words: Mapping[str, int], mapping: Mapping[str, str | None]) -> dict[str, int]:
    """{label or word: rows} after the mapping."""
    by_word = {normalise(word): label for word, label in mapping.items()}
    label_counts: dict[str, int] = defaultdict(int)
    for word, count in words.items():
        label = by_word.get(normalise(word), word)
        if label is not None:
            label_counts[label] += count
    return dict(label_counts)


def _has_several(words: Mapping[str, int]) -> bool:
    """Whether cells are lists, whose words are fewer than the cells are different."""
    listed = sum(count for word, count in words.items() if _SEPARATORS.search(word))
    return listed >= _SEVERAL * sum(words.values()) and len(_pieces(words)) <= len(words)


def _pieces(words: Mapping[str, int]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for word, count in words.items():
        for piece in _SEPARATORS.split(word):
            if piece:
                counts[piece] += count
    return dict(counts)


def _spellings(words: Mapping[str, int]) -> dict[str, str]:
    """{normalised word: its most frequent spelling}, in alphabetical order."""
    spellings: dict[str, dict[str, int]] = defaultdict(dict)
    for word, count in words.items():
        if key := normalise(word):
            spellings[key][word] = spellings[key].get(word, 0) + count
    return {
        key: max(sorted(counts), key=lambda word: (counts[word], not word.isupper()))
        for key, counts in sorted(spellings.items())
    }


def _built_in(words: Any) -> LabelSpace | None:
    """The built-in label space of one label a face that has all of the words, the smallest of
    emotions first."""
    listed = list(words)
    others = sorted(label_spaces.SPACES, key=lambda name: len(label_spaces.SPACES[name].labels))
    for name in dict.fromkeys((*EMOTION_SPACES, *others)):
        space = label_spaces.SPACES[name]
        usable = not space.multi_label and space.field in ("emotion", "context")
        if usable and all(space.match(word) for word in listed):
            return space
    return None


def _define(
    id: str, spelling: Mapping[str, str], ordered: Sequence[str], several: bool, where: str
) -> dict[str, Any]:
    labels = list(spelling.values())
    if ordered:
        if {normalise(word) for word in ordered} != set(spelling):
            raise UserError(
                f"{where}: --ordered {' '.join(ordered)} must name each label once, which are "
                f"{', '.join(labels)}"
            )
        labels = [spelling[normalise(word)] for word in ordered]
    return {
        "id": id,
        "field": "context",
        "labels": labels,
        **({"ordered": True} if ordered else {}),
        **({"multi_label": True} if several else {}),
    }


def _count(words: Mapping[str, int], space: LabelSpace, where: str) -> dict[str, int]:
    counts = dict.fromkeys(space.labels, 0)
    for word, count in words.items():
        label = space.match(word)
        if label is None and space.scale is not None:
            raise UserError(
                f"{where}: {word!r} is not a number from {space.scale.range_text}, the scale of "
                f"the labels: correct it, leave it out, --labels {shlex.quote(word)}=null, or name "
                "another range with --scale"
            )
        if label is None:
            raise UserError(
                f"{where}: {word!r} is not a label of {space.id} "
                f"({', '.join(space.labels)}): map it, --labels {word!r}={space.labels[0]}, or use "
                "another label space"
            )
        counts[label] += count
    return counts


def space_name(path: Path) -> str:
    """An id of a label space for a file or folder."""
    name = re.sub(r"[^\w.-]", "_", path.name.split(".")[0] or "labels").lstrip(".-") or "labels"
    return f"{name}_labels"[: label_spaces.LONGEST_ID]


def _listed(words: Mapping[str, int]) -> str:
    listed = list(words)
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
