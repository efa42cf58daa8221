"""Arrays that measures take: converted and checked, with messages that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmface.errors import UserError
from vlmface.metrics.statistics import Array

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

SLACK = 1e-3  # how far rounding may take a probability, or the sum of a row, out of its range


def check_array(name: str, values: ArrayLike, dimensions: int) -> NDArray[Any]:
    """Values as an array of so many dimensions, with rows and finite numbers."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise UserError(f"{name} is not an array ({error}): give rows of one length") from error
    if array.ndim != dimensions:
        axes = "one number for each row" if dimensions == 1 else "a table of rows and columns"
        raise UserError(f"{name} has the shape {array.shape}: give {axes}")
    if not array.size:
        raise UserError(f"{name} has no rows: there is nothing to measure")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} has values such as {array.flat[:1].tolist()[0]!r}: give numbers")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)]
        raise UserError(
            f"{name} has {len(bad)} values that are not finite, such as {bad[0]}: "
            "leave out the rows that have no value"
        )
    return array


def vector(name: str, values: ArrayLike) -> Array:
    """Values as floats (N,)."""
    return check_array(name, values, 1).astype(float)


def table_of(name: str, values: ArrayLike) -> Array:
    """Values as floats (N, K)."""
    return check_array(name, values, 2).astype(float)


def flags_of(name: str, values: ArrayLike, dimensions: int = 1) -> Flags:
    """Values as flags of so many dimensions."""
    flags = check_array(name, values, dimensions)
    if flags.dtype != bool and not ((flags == 0) | (flags == 1)).all():
        bad = flags[(flags != 0) & (flags != 1)]
        raise UserError(f"{name} has the value {bad[0]}: give true or false")
    return flags.astype(bool)


def pair(predicted: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    """Two vectors of the same length."""
    x, y = vector("predicted", predicted), vector("true", true)
    check_same_length(predicted=x, true=y)
    return x, y


def probability_table(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Array, Indices]:
    """A checked table (N, K) and the indices (N,) of its true columns."""
    table, true = table_of("probabilities", probabilities), check_array("truth", truth, 1)
    check_same_length(probabilities=table, truth=true)
    check_range("probabilities", table)
    sums = table.sum(1)
    if (off := np.abs(sums - 1) > SLACK).any():
        raise UserError(
            f"row {off.argmax()} of the probabilities sums to {sums[off.argmax()]:g}, expected 1: "
            "give the softmax over all labels"
        )
    if true.dtype.kind not in "iu" or true.min() < 0 or true.max() >= table.shape[1]:
        raise UserError(
            f"truth is {true.min()} to {true.max()} ({true.dtype}): give the index of the true "
            f"label of each row, a whole number from 0 to {table.shape[1] - 1}"
        )
    return table, true.astype(np.int64)


def check_range(name: str, values: Array) -> None:
    """Raise UserError unless values are shares, up to rounding."""
    if values.min() < -SLACK or values.max() > 1 + SLACK:
        raise UserError(
            f"{name} is from {values.min():g} to {values.max():g}, expected 0 to 1: give shares, "
            "neither per cent nor logits"
        )


def check_same_length(**arrays: NDArray[Any]) -> None:
    """Raise UserError unless two named arrays have as many rows."""
    (name, first), (other, second) = arrays.items()
    if len(first) != len(second):
        raise UserError(
            f"{name} has {len(first)} rows and {other} {len(second)}: "
            "give one of each for every row"
        )


def check_same_shape(**arrays: NDArray[Any]) -> None:
    """Raise UserError unless two named arrays have the same shape."""
    (name, first), (other, second) = arrays.items()
    if first.shape != second.shape:
        raise UserError(
            f"{name} has the shape {first.shape} and {other} {second.shape}: "
            "give one of each for every row and class"
        )
