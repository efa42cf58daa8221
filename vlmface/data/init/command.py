"""`vlmface data init FILE_OR_FOLDER`: look at the data, show what was guessed, write NAME.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data.catalog import dataset_module
from vlmface.data.dataset_file import DatasetFile
from vlmface.data.init import columns as guesses
from vlmface.data.init import divide, labels, pictures
from vlmface.data.init.boxes import face_box
from vlmface.data.init.labels import LabelChoices, LabelGuess
from vlmface.data.init.writing import FileContent
from vlmface.data.rows import Rows
from vlmface.data.tables.columns import FIELDS
from vlmface.data.tables.files import TEXT, ending, open_table
from vlmface.data.tables.folders import SAVED, open_folder, split_folders, table_files, table_splits
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.schema import COLUMN_ROLES
from vlmface.utils import files
from vlmface.utils.images import SUFFIXES

EXAMPLES = 5  # rows that are shown
_PICTURE_AND_WORD = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\s+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Choices:
    """The options of the command.

    Attributes:
        columns: {role: column, "none", or None to guess}, of `schema.COLUMN_ROLES`.
        images: The folder that paths start from.
        split_by: "subject" or "image"; None: subject where people are known.
        labels: About the labels.
        output: The file to write; None: beside a table, or in the working folder.
        overwrite: Whether an existing file is replaced.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    images: str | None = None
    split_by: str | None = None
    labels: LabelChoices = field(default_factory=LabelChoices)
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Finding:
    """What was found out about some data: the file to write, and lines about it."""

    content: FileContent
    lines: Sequence[str]


def init_command(path: Path, choices: Choices) -> int:
    """Look at data, print what was guessed, and write the YAML file.

    Args:
        path: A table, a folder of tables, or a folder of label folders.
        choices: What the command line says.

    Returns:
        The exit code.

    Raises:
        UserError: Something cannot be guessed and must be named, or the data cannot be used.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: give a table or a folder")
    path, table, options = _open(path)
    target = choices.output or _target(path, table is not None)
    if target.exists() and not choices.overwrite:
        raise UserError(f"{target} exists already: pass --overwrite, or another file with --output")
    if table is None:
        finding = look_at_folders(path, target, choices)
    else:
        finding = look_at_table(path, table, options, target, choices)
    print("\n".join(finding.lines))
    dataset = _write(target, finding.content)
    _print_splits(dataset)
    _print_next(target, finding.content.prompt)
    return 0


def _target(path: Path, is_table: bool) -> Path:
    name = path.resolve().name
    stem = name.split(".")[0] if path.is_file() else name
    return (path.parent if path.is_file() else Path()) / f"{stem or 'faces'}.yaml"


def _open(path: Path) -> tuple[Path, Table | None, dict[str, Any]]:
    """(the data's root, its table or None for label folders, options to read it with)."""
    if path.is_dir():
        saved = any((path / name).is_file() for name in SAVED)
        tables = [] if saved else table_files(path)
        if not saved and not tables:
            return _innermost(path), None, {}
        if len(tables) == 1 and ending(tables[0]) != ".parquet":
            path = tables[0]
        else:  # a split column makes it read all files
            return path, open_folder(path, "", TableOptions(split_column="")), {}
    table = open_table(path, TableOptions())
    if ending(path) in TEXT and any(name.lower().endswith(SUFFIXES) for name in table.columns):
        return path, open_table(path, TableOptions(header=False)), {"header": False}
    return path, table, {}


def _innermost(path: Path) -> Path:
    """The folder of label or split folders: below folders that hold a single folder alone."""
    while True:
        entries = [p for p in path.iterdir() if not p.name.startswith((".", "__"))]
        folders = [p for p in entries if p.is_dir()]
        pictures_here = any(p.name.lower().endswith(SUFFIXES) for p in entries)
        if len(folders) != 1 or pictures_here or folders[0].name.lower() in SPLIT_WORDS:
            return path
        path = folders[0]


# --- tables ---------------------------------------------------------------------------------------


def look_at_table(
    path: Path, table: Table, options: dict[str, Any], target: Path, choices: Choices
) -> Finding:
    """What a table holds. Raises UserError for what must be named."""
    columns = guesses.columns_of(table)
    roles = guesses.guess(table, columns, choices.columns)
    description = f"{path}: {len(table):,} rows, columns {table.names()}"
    if "image" not in roles and "video" not in roles:
        hint = "name it with --image COLUMN"
        if any(_PICTURE_AND_WORD.search(name) for name in columns):
            hint = "put a comma or a tab between the columns"
        raise UserError(f"{path}: no column holds names of picture files ({table.names()}): {hint}")
    locations, folder = _locate(path, columns, roles, choices)
    votes = [] if "label" in roles else _votes(columns)
    if "label" not in roles and not votes:
        raise UserError(
            f"{path}: no column was recognised as the label ({table.names()}): name it with "
            "--label COLUMN"
        )
    if votes:
        words, where = {name: 1 for name in votes}, f"{path}, columns of votes"
    else:
        words, where = columns[roles["label"]].words, f"{path}, column {roles['label']!r}"
    guess = labels.guess_labels(words, choices.labels, where, labels.space_name(path))
    by, unnamed, splits = _splits(table, columns, roles, guess, choices)
    options = options | _options(table, columns, roles, guess, votes)
    if folder is not None and folder.resolve() != path.parent.resolve():
        options["images"] = os.path.relpath(folder, target.parent)
    units = guesses.units(columns)
    content = FileContent(
        source=path.name,
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options=options | units,
        splits=splits,
        label_space=_definition(guess, target),
        prompt="rationale" if "rationale" in roles else "au_rationale" if units else "label",
        unknown_people=by == "image",
    )
    lines = [description, "", *_role_lines(columns, roles, guess, locations, bool(votes))]
    if units:
        lines.append(_line("action units", f"{len(units['aus'])} columns", ", ".join(units["aus"])))
    if unnamed:
        lines.append(unnamed)
    return Finding(content, [*lines, "", *_examples(table, roles)])


def _locate(
    path: Path,
    columns: Mapping[str, guesses.Column],
    roles: Mapping[str, str],
    choices: Choices,
) -> tuple[str, Path | None]:
    """(how many pictures exist, the folder that their paths start from)."""
    role = "image" if "image" in roles else "video"
    column = columns[roles[role]]
    paths = list(column.words)
    if not paths:
        return f"{len(column.codes):,} pictures inside the table", None
    near = path if path.is_dir() else path.parent
    folder = Path(choices.images) if choices.images else pictures.find_folder(paths, near)
    existing = 0 if folder is None else pictures.count_existing(paths, folder)
    if folder is None or not existing:
        raise UserError(
            f"{path}: no file of column {column.name!r} exists, such as {paths[0]!r}, which was "
            f"looked for in and around {folder or near}: name the folder that the paths start "
            "from, --images FOLDER"
        )
    return f"{existing:,} of {len(paths):,} files exist in {folder}", folder


def _votes(columns: Mapping[str, guesses.Column]) -> list[str]:
    """Columns that are named by emotions and hold votes or probabilities."""
    space = labels.label_spaces.space("emotion8")
    voted = [
        name
        for name, column in columns.items()
        if space.match(name) and column.numbers and min(column.numbers) >= 0
    ]
    return voted if len(voted) > 2 else []


def _splits(
    table: Table,
    columns: Mapping[str, guesses.Column],
    roles: dict[str, str],
    guess: LabelGuess,
    choices: Choices,
) -> tuple[str | None, str | None, dict[str, Any]]:
    """(subject or image or None if nothing is divided, a line about people, `splits`)."""
    rows = range(len(table))
    people = _texts(columns[roles["subject"]]) if "subject" in roles else None
    note = None
    if people is not None and choices.split_by != "image":
        if None in people:
            row = people.index(None)
            raise UserError(
                f"{table.where(row)}: {roles['subject']!r} is empty, so it is not known who that "
                "is: fill it in, or split by picture, --split-by image"
            )
        if len(set(people)) < 2:
            note = _line("", "", f"all rows are of one person, {people[0]}: split by picture")
    if choices.split_by == "subject" and people is None:
        raise UserError("--split-by subject needs a column that names people: --subject COLUMN")
    by = "image" if people is None or note or choices.split_by == "image" else "subject"
    groups = [str(people[i]) if people and by == "subject" else str(i) for i in rows]
    splits: dict[str, Any] = {}
    present = set(table_splits(table.path, TableOptions())) if table.path.is_dir() else set()
    if "split" in roles:
        column = columns[roles["split"]]
        splits["column"] = column.name
        if names := guesses.split_names(column):
            splits["names"] = names
        words = {word: names.get(word) or SPLIT_WORDS[word.casefold()] for word in column.words}
        present = set(words.values())
    if "label" in roles:
        row_labels = _row_labels(columns[roles["label"]], guess)
        if "test" not in present and not guess.space.multi_label:
            divide.check_rows(table, groups, row_labels, by_person=by == "subject")
    taken = divide.shares(present, len(set(groups)))
    if taken:
        splits = {**splits, "by": by, **taken, "seed": 0}
    if by == "image" and taken and note is None:
        note = _line("", "", "people are not known: splits go by picture (see the YAML file)")
    return (by if taken else None), note, splits


def _texts(column: guesses.Column) -> list[str | None]:
    """The text of each row."""
    texts = [str(value).strip() or None for value in column.values]
    return [None if code < 0 else texts[code] for code in column.codes.tolist()]


def _row_labels(column: guesses.Column, guess: LabelGuess) -> list[tuple[str, ...]]:
    """The labels of each row."""
    mapping = {labels.normalise(word): label for word, label in guess.mapping.items()}
    of_value = []
    for value in column.values:
        word = str(value).strip()
        word = mapping.get(labels.normalise(word), word) or ""
        label = guess.space.match(word)
        of_value.append((label,) if label else ())
    return [() if code < 0 else of_value[code] for code in column.codes.tolist()]


def _options(
    table: Table,
    columns: Mapping[str, guesses.Column],
    roles: Mapping[str, str],
    guess: LabelGuess,
    votes: Sequence[str],
) -> dict[str, Any]:
    """The options of `table`."""
    named: dict[str, Any] = {role: name for role, name in roles.items() if role != "split"}
    box, box_options = face_box(columns)
    if box is not None:
        named["face_box"] = box
    used = {*roles.values(), *(box if isinstance(box, list) else [box])}
    for name in FIELDS:  # columns that would be read by their names alone
        column = table.find(name)
        if name in named or column is None:
            continue
        is_id = name == "id" and len(columns[column].values) == len(table)
        if not is_id and (name == "id" or column not in used):
            named[name] = None
    options: dict[str, Any] = {"columns": named, **box_options}
    if guess.mapping:
        options["labels"] = guess.mapping
    if votes:
        options["votes"] = list(votes)
    return options


def _definition(guess: LabelGuess, target: Path) -> str | dict[str, Any]:
    """The label space as the file names it: the path of a YAML file is relative to it."""
    if isinstance(guess.definition, str) and guess.definition.endswith((".yaml", ".yml")):
        return os.path.relpath(guess.definition, target.parent)
    return guess.definition


# --- folders --------------------------------------------------------------------------------------


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
        label_space=_definition(guess, target),
        unknown_people=True,
    )
    lines = [
        f"{path}: {sum(counts.values()):,} pictures in folders named by label",
        "",
        _line("label", "folder", _counted(guess)),
        _line("", "", "people are not known: splits go by picture (see the YAML file)"),
        "",
        *(f"  {example}" for example in examples[:EXAMPLES]),
    ]
    return Finding(content, lines)


# --- output ---------------------------------------------------------------------------------------


def _line(role: str, column: str, text: str) -> str:
    return f"  {role:13}{column:20} {text}".rstrip()


def _counted(guess: LabelGuess) -> str:
    by_count = sorted(((label, n) for label, n in guess.counts.items() if n), key=lambda x: -x[1])
    listed = ", ".join(f"{label} ({n:,})" for label, n in by_count[:12])
    more = f", ... {len(by_count)} labels" if len(by_count) > 12 else ""
    space_name = f"; label space {guess.space.id}" if guess.space.is_built_in else ""
    return listed + more + space_name


def _role_lines(
    columns: Mapping[str, guesses.Column],
    roles: Mapping[str, str],
    guess: LabelGuess,
    picture_text: str,
    voted: bool,
) -> list[str]:
    lines = []
    for role, name in roles.items():
        column = columns[name]
        if role in ("image", "video"):
            text = picture_text
        elif role == "label":
            text = _counted(guess)
        elif role == "subject":
            text = f"{len(column.words):,} people"
        else:
            text = ", ".join(list(column.words)[:4])
        lines.append(_line(role, name, text))
    if voted:
        lines.append(_line("label", "most votes", ", ".join(guess.space.labels)))
    return lines


def _examples(table: Table, roles: Mapping[str, str]) -> list[str]:
    """The first rows of the columns that are used."""
    names = list(roles.values())
    chosen = np.linspace(0, len(table) - 1, min(EXAMPLES, len(table))).round().astype(int)
    rows = [[_cell(table.columns[name][row]) for name in names] for row in chosen.tolist()]
    widths = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (names, *rows)
    ]


def _cell(value: Any) -> str:
    value = value.as_py() if hasattr(value, "as_py") else value
    if isinstance(value, bytes | dict):
        return "(picture)"
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:18]}…{text[-21:]}"


def _write(target: Path, content: FileContent) -> DatasetFile:
    """Write the file, if the data set that it defines can be read."""
    draft = target.with_name(f".{target.stem}.draft.yaml")
    files.atomic_write(draft, content.to_yaml())
    try:
        dataset = DatasetFile(draft, dataset_module)
        for split in dataset.present_splits(None):
            dataset.read(None, split)
        os.replace(draft, target)
    except UserError as error:
        draft.unlink()
        raise UserError(str(error).replace(str(draft), str(target))) from error
    return DatasetFile(target, dataset_module)


def _print_splits(dataset: DatasetFile) -> None:
    counts = []
    for split in dataset.present_splits(None):
        rows = dataset.read(None, split)
        subjects = set(rows.columns.get("subject") or ()) if isinstance(rows, Rows) else set()
        people = f" of {len(subjects):,} people" if subjects - {None} else ""
        counts.append(f"{split} {len(rows):,} rows{people}")
    print(f"\nsplits: {', '.join(counts)}")


def _print_next(target: Path, prompt: str) -> None:
    recipe = "sft_labels" if prompt == "label" else "sft_cot"
    run = f"runs/{target.stem}"
    print(f"written: {target}\nnext:")
    print(f"  vlmface data check {target}")
    print(f"  vlmface train {recipe} --dataset {target} --output_dir {run}")
    print(f"  vlmface eval run --benchmark {target} --model {run}")


def choices_from(arguments: Any) -> Choices:
    """The choices of a parsed command line (`cli`)."""
    return Choices(
        columns={role: getattr(arguments, role) for role in COLUMN_ROLES},
        images=arguments.images,
        split_by=arguments.split_by,
        labels=LabelChoices(
            arguments.label_space, arguments.labels, arguments.ordered, arguments.multi_label
        ),
        output=arguments.output,
        overwrite=arguments.overwrite,
    )
