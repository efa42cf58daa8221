"""Data sets as FaceSample rows: `load(name, root, split=...)`.

Each data set is one module in `vlmface/data/adapters/`, named as `load` names it:

    TITLE, HOME, LICENCE    for people
    SPLITS                  the splits that the set defines
    PUBLISHED               split -> {label or "rows": number}, as its owners published them;
                            PUBLISHED_BY: (option, value) -> the same under that option
    WHOLE_SCENES            True where the pictures show people in their surroundings, not faces
    read(root, split, **protocol) -> Rows (rendered sets have no root and say NEEDS_ROOT = False)
    present_splits(root, **protocol)    optional: which of SPLITS a user's own files hold

A module that is put there is a data set; nothing else lists them.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import pkgutil
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

from vlmface.data import options
from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

    from vlmface.data.rows import Rows

OF_ALL = ("missing", "broken", "n")  # options of `load` for every data set


_BLOCK = 1000  # rows that are in memory at once, where all are read


def names() -> list[str]:
    """The names that `load` knows, sorted."""
    from vlmface.data import adapters

    return sorted(module.name for module in pkgutil.iter_modules(adapters.__path__))


def adapter(name: str) -> ModuleType:
    """The module of a data set. Raises UserError if there is none of that name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"there is no data set {name!r}: {hint}")
    return importlib.import_module(f"vlmface.data.adapters.{name}")


def shows_faces(name: str) -> bool:
    """Whether the pictures of a data set, or of each source of a mixture, are faces, rather than
    people in their surroundings. Raises UserError as `load` does."""
    if is_mixture(name):
        from vlmface.data import mixture

        return all(shows_faces(source.data) for source in mixture.read(Path(name).expanduser())[1])
    return not getattr(adapter(name), "WHOLE_SCENES", False)


def is_mixture(name: str) -> bool:
    """Whether what stands for a data set's name is the file of a mixture."""
    return str(name).endswith((".yaml", ".yml"))


@overload
def load(
    name: str,
    root: str | Path | None = ...,
    split: str = ...,
    *,
    streaming: Literal[False] = ...,
    missing: str = ...,
    broken: str = ...,
    n: int | None = ...,
    **protocol: Any,
) -> datasets.Dataset: ...
@overload
def load(
    name: str,
    root: str | Path | None = ...,
    split: str = ...,
    *,
    streaming: Literal[True],
    missing: str = ...,
    broken: str = ...,
    n: int | None = ...,
    **protocol: Any,
) -> datasets.IterableDataset: ...
def load(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    streaming: bool = False,
    missing: str = "error",
    broken: str = "keep",
    n: int | None = None,
    **protocol: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a data set as FaceSample rows (`schema.features()`), images undecoded until
    they are looked at.

    `root` is the folder as its owners distribute it (None for rendered sets); `protocol` are the
    data set's own options; `missing` is "error" or "drop" for listed images that are not there.
    `broken` is the same for images that cannot be decoded, which takes decoding all of them, or
    "keep" (default), which looks at none. `n` takes so many rows: of rendered sets the first ones,
    of other sets a random choice that is always the same, and of which broken images are dropped. A
    `name` that ends in .yaml is a mixture (`vlmface.data.mixture`). Raises UserError for an unknown
    name, split or option, and for a copy that is not as it should be.
    """
    from vlmface.data.decodable import decodable
    from vlmface.data.rows import Rows, to_dataset

    if broken not in ("keep", "error", "drop"):
        raise UserError(f"broken={broken!r}: use 'keep', 'error' or 'drop'")
    if is_mixture(name):
        from vlmface.data import mixture

        mixed = mixture.load(name, root, split, missing=missing, broken=broken, n=n, **protocol)
        return mixed.to_iterable_dataset() if streaming else mixed
    if n is not None and "n" in inspect.signature(adapter(name).read).parameters:
        protocol["n"] = n
    found = read(name, root, split, **protocol)
    if isinstance(found, Rows):
        found = to_dataset(found, name, split, missing=missing)
    if n is not None and n < len(found):
        found = found.select(sorted(random.Random(0).sample(range(len(found)), n)))
    if broken != "keep":
        found = decodable(found, f"{name}, {split}", broken)
    return found.to_iterable_dataset() if streaming else found


def read(
    name: str, root: str | Path | None = None, split: str = "train", /, **protocol: Any
) -> Rows | datasets.Dataset:
    """What the data set's own module makes of a split: `load` before images are looked for, with
    what was left out. Raises UserError as `load` does."""
    module = adapter(name)
    _check_options(name, protocol)
    if split not in module.SPLITS:
        raise UserError(
            f"{name} has no split {split!r}: it has {', '.join(module.SPLITS)}"
            + ("" if "validation" in module.SPLITS else
               "; data.hold_out takes a validation part of its training people")
        )  # fmt: skip
    return module.read(_root(name, root), split, **protocol)


def _root(name: str, root: str | Path | None) -> Path | None:
    module = adapter(name)
    place = None if root is None else Path(root).expanduser()
    if getattr(module, "NEEDS_ROOT", True) and (place is None or not place.exists()):
        raise UserError(
            f"{name} needs the root of your copy ({module.HOME}), "
            + ("and none was given" if place is None else f"and {place} does not exist")
        )
    return place


def splits_of(name: str, root: str | Path | None, **protocol: Any) -> tuple[str, ...]:
    """The splits that a copy has: all of the data set's, except where the user's own files decide
    (its module's `present_splits`)."""
    module = adapter(name)
    _check_options(name, protocol)
    if not hasattr(module, "present_splits"):
        return module.SPLITS
    return module.present_splits(_root(name, root), **protocol) or module.SPLITS


def _check_options(name: str, protocol: Mapping[str, Any]) -> None:
    """Raise UserError for an option that the data set does not have, or of the wrong type."""
    read = adapter(name).read
    own = list(inspect.signature(read).parameters)[2:]
    for option, value in protocol.items():
        if option not in own:
            raise UserError(
                f"data set {name!r} has no option {option!r}; it has {', '.join(own) or 'none'}"
            )
        options.check_type(f"{name}: {option}", options.declared(read)[option], value)


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The options of a data set, or those of OF_ALL, from words of the command line such as
    "fold=2". Values are read as YAML, except where the option is a text. Raises UserError for a
    word that is no such pair, and for an option that the data set does not have."""
    import yaml

    kinds = inspect.signature(adapter(name).read).parameters
    found = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"an option is written name=value, found {word!r}")
        kind = kinds[option].annotation if option in kinds else None
        try:
            found[option] = text if kind in ("str", "str | None") else yaml.safe_load(text)
        except yaml.YAMLError as error:
            why = str(error).replace("\n", " ")
            raise UserError(f"option {option} cannot be read from {text!r}: {why}") from error
    _check_options(name, {k: value for k, value in found.items() if k not in OF_ALL})
    return found


def fingerprint(rows: datasets.Dataset, *, pictures: bool = True) -> str:
    """12 hex digits over the annotation and the pictures of all rows in order: same data, same
    digits.

    Args:
        rows: FaceSample rows as `load` gives them, before `crop_cache.shown`.
        pictures: read the bytes of all pictures, in threads and undecoded, so that a file that was
            exchanged is noticed; a picture counts by its content, wherever it is stored.

    Raises:
        UserError: a picture cannot be read.
    """
    from vlmface.data import sources
    from vlmface.schema import features

    columns = [name for name in features() if name not in ("image", "frames")]
    plain = rows.select_columns(columns).with_format("arrow")
    digest = hashlib.sha256()
    for start in range(0, len(rows), _BLOCK):
        block = plain[start : start + _BLOCK]
        for column in columns:
            _update(digest, block[column])
    if pictures:
        for content in sources.digests(rows):
            digest.update(content.encode())
    return digest.hexdigest()[:12]


def _update(digest: Any, column: Any) -> None:
    """Add the values of an Arrow column to a digest. Lists and structs are taken apart first, since
    their conversion to Python takes most of the time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type):
        digest.update(repr(pc.list_value_length(column).to_pylist()).encode())
        _update(digest, pc.list_flatten(column))
    elif pa.types.is_struct(column.type):
        for field in column.type:
            _update(digest, pc.struct_field(column, field.name))
    else:
        digest.update(repr(column.to_pylist()).encode())


def hold_out(
    rows: datasets.Dataset, share: float, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(rest, held out): by whole subjects, as near to `share` (0..1) of the rows as these allow; a
    row without a subject is its own. Neither part is empty. Deterministic under `seed`, and
    independent of the order of the rows. Raises UserError for a single subject."""
    import numpy as np

    from vlmface.data import people

    if not 0 < share < 1:
        raise UserError(f"hold_out takes a share between 0 and 1, not {share}")
    subjects = people.keys(rows)
    chosen = people.choose(subjects, share, seed)
    held = np.array([subject in chosen for subject in subjects], bool)
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))
