"""`vlmface data init FILE_OR_FOLDER`: look at the data, show what was guessed, write NAME.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmface.column_roles import COLUMN_ROLES
from vlmface.data.catalog import dataset_module
from vlmface.data.dataset_file import DatasetFile, row_labels
from vlmface.data.init import known_files
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.label_folders import look_at_folders
from vlmface.data.init.labels import LabelChoices
from vlmface.data.init.opening import open_data
from vlmface.data.init.rating_columns import parse_choice
from vlmface.data.init.tables import look_at_table
from vlmface.data.init.writing import FileContent
from vlmface.data.rows import Rows
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils import files


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
    path, table, options = open_data(path, choices.sheet, choices.encoding)
    target = choices.output or _target(path, table is not None)
    if target.exists() and not choices.overwrite:
        raise UserError(f"{target} exists already: pass --overwrite, or another file with --output")
    finding = _look_at(path, table, options, target, choices)
    print("\n".join(finding.lines))
    dataset = _write(target, finding.content)
    _print_splits(dataset)
    _print_next(target, finding.content.prompt, dataset.label_space.scale is not None)
    return 0


def _look_at(
    path: Path, table: Table | None, options: dict[str, Any], target: Path, choices: Choices
) -> Finding:
    """What the data of `_open` are."""
    if table is None:
        return look_at_folders(path, target, choices)
    if (file := known_files.of_table(table)) is not None:
        return known_files.look_at(file, path, table, target, choices)
    return look_at_table(path, table, options, target, choices)


def _target(path: Path, is_table: bool) -> Path:
    name = path.resolve().name
    stem = name.split(".")[0] if path.is_file() else name
    return (path.parent if path.is_file() else Path()) / f"{stem or 'faces'}.yaml"


def _write(target: Path, content: FileContent) -> DatasetFile:
    """Write the file, if the data set that it defines can be read."""
    draft = target.with_name(f".{target.stem}.draft.yaml")
    try:
        files.atomic_write(draft, content.to_yaml())
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror or error}: name another file, --output "
            f"{target.name}"
        ) from error
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
        unlabelled = sum(not labels for labels in row_labels(rows, dataset.label_space))
        without = f" ({unlabelled:,} without a label)" if unlabelled else ""
        counts.append(f"{split} {len(rows):,} rows{people}{without}")
    print(f"\nsplits: {', '.join(counts)}")


def _print_next(target: Path, prompt: str, is_scale: bool) -> None:
    recipe = "sft_labels" if prompt == "label" else "sft_cot"
    run = f"runs/{target.stem}"
    print(f"written: {target}\nnext:")
    print(f"  vlmface data check {target}")
    print(f"  vlmface train {recipe} --dataset {target} --output_dir {run}")
    print(f"  vlmface eval run --benchmark {target} --model {run}")
    if is_scale:  # which a classifier cannot learn
        return
    print(
        f"a classifier, which is faster and gives no text: vlmface train clip_finetune --dataset "
        f"{target} --output_dir {run}_clip"
    )


def choices_from(arguments: Any) -> Choices:
    """The choices of a parsed command line (`cli`)."""
    columns = {role: getattr(arguments, role) for role in COLUMN_ROLES}
    scale = None if arguments.scale is None else parse_choice(arguments.scale)
    if scale is not None and scale.column is not None:
        if columns["label"] not in (None, scale.column):
            raise UserError(
                f"--scale names the column {scale.column!r} and --label {columns['label']!r}: leave"
                " one of them out"
            )
        columns["label"] = scale.column
    return Choices(
        columns=columns,
        images=arguments.images,
        split_by=arguments.split_by,
        labels=LabelChoices(
            arguments.label_space,
            arguments.labels,
            arguments.ordered,
            arguments.multi_label,
            scale,
        ),
        output=arguments.output,
        overwrite=arguments.overwrite,
        raters=arguments.raters,
        label_columns=arguments.label_columns,
        name_pattern=arguments.name_pattern,
        sheet=arguments.sheet,
        encoding=arguments.encoding,
    )
