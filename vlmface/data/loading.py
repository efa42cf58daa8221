"""Load one data set: its module's rows as a table, with the options that all data sets have."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlmface.data import options
from vlmface.data.catalog import dataset_module, describe, short_name
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.decodable import decodable_rows
from vlmface.data.rows import Rows
from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

OF_ALL = ("missing", "broken", "n")  # options of every data set


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    missing: str = "error",
    broken: str = "keep",
    n: int | None = None,
    **protocol: Any,
) -> datasets.Dataset:
    """`vlmface.data.load` of a single data set.

    Raises:
        UserError: The name, split or an option is unknown, or the copy is not as it should be.
    """
    if broken not in ("keep", "error", "drop"):
        raise UserError(f"broken={broken!r}: use 'keep', 'error' or 'drop'")
    if n is not None and "n" in options.option_types(dataset_module(name).read):
        protocol["n"] = n
    rows = read(name, root, split, **protocol)
    if not isinstance(rows, Rows) and not hasattr(rows, "column_names"):
        raise UserError(
            f"data set {name!r}: its read(root, split) returned a {type(rows).__name__}, but must "
            "return vlmface.data.rows.Rows"
        )
    if missing == "error":
        missing = getattr(dataset_module(name), "missing", missing)
    if isinstance(rows, Rows):
        rows = to_dataset(rows, short_name(name), split, missing=missing)
    if n is not None and n < len(rows):
        rows = rows.select(sorted(random.Random(0).sample(range(len(rows)), n)))
    if broken != "keep":
        rows = decodable_rows(rows, f"{name}, {split}", broken)
    return rows


def read(
    name: str, root: str | Path | None = None, split: str = "train", /, **protocol: Any
) -> Rows | datasets.Dataset:
    """What the data set's own module makes of a split: `load` before images are looked for, with
    what was left out. Raises UserError as `load` does."""
    module = dataset_module(name)
    _check_options(name, protocol)
    if split not in module.SPLITS:
        raise UserError(
            f"{name} has no split {split!r}: it has {', '.join(module.SPLITS)}"
            + (
                ""
                if "validation" in module.SPLITS
                else "; data.hold_out takes a validation part of its training people"
            )
        )
    return options.call_reader(module.read, _root(name, root), split, protocol)


def _root(name: str, root: str | Path | None) -> Path | None:
    module = dataset_module(name)
    folder = None if root is None else Path(root).expanduser()
    if getattr(module, "NEEDS_ROOT", True) and (folder is None or not folder.exists()):
        raise UserError(
            f"{name} needs the root of your copy ({describe(name)['home']}), "
            + ("and none was given" if folder is None else f"and {folder} does not exist")
            + _hub_hint(name, str(root))
        )
    return folder


def _hub_hint(name: str, root: str) -> str:
    """What to do if a root that does not exist is the name of a data set of the Hub."""
    owner, _, repository = root.partition("/")
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w-]*", root) and not Path(owner).exists()
    if name != "table" or not is_name:
        return ""
    return (
        f". If this is a data set of the Hugging Face Hub, run `hf download {root} --repo-type "
        f"dataset --local-dir {repository}`, and give the folder {repository}"
    )


def splits_of(name: str, root: str | Path | None, **protocol: Any) -> tuple[str, ...]:
    """The splits that a copy has: all of the data set's, except where the user's own files decide
    (its module's `present_splits`)."""
    module = dataset_module(name)
    _check_options(name, protocol)
    if not hasattr(module, "present_splits"):
        return module.SPLITS
    return module.present_splits(_root(name, root), **protocol) or module.SPLITS


def _check_options(name: str, protocol: Mapping[str, Any]) -> None:
    """Raise UserError for an option that the data set does not have, or of the wrong type."""
    options.check_options(name, dataset_module(name).read, protocol)


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The options of a data set, or those of OF_ALL, from the command line.

    Args:
        name: Of the data set.
        words: Such as "fold=2", or one mapping such as "{fold: 2}". Values are read as YAML, except
            where the option is a text.

    Raises:
        UserError: A word is not a pair, or the data set does not have the option.
    """
    kinds = options.option_types(dataset_module(name).read)
    values: dict[str, Any] = {}
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        values = _read_yaml("the options", words[0])
    else:
        for word in words:
            option, equals, text = word.partition("=")
            if not equals:
                raise UserError(f"an option is written name=value, found {word!r}")
            is_text = kinds.get(option) in (str, str | None)
            values[option] = text if is_text else _read_yaml(f"option {option}", text)
    _check_options(name, {k: value for k, value in values.items() if k not in OF_ALL})
    return values


def _read_yaml(description: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = str(error).replace("\n", " ")
        raise UserError(f"{description} cannot be read from {text!r}: {why}") from error
