"""Validation rows of a run, and what is measured on generated answers about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import data
from vlmface.benchmarks import Benchmark
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.infer.prediction import Prediction
from vlmface.label_texts import LabelTexts
from vlmface.metrics.metric import of_kind, scored_blocks
from vlmface.metrics.metrics import valid_share
from vlmface.train.validation import is_test_split
from vlmface.utils import distributed

if TYPE_CHECKING:
    import datasets

SPLIT = "validation"  # by default
SHARE = 0.1  # of the training rows, where there is no such split


# --- rows -----------------------------------------------------------------------------------------


def split(
    settings: Any, loaded: datasets.Dataset
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Choose what is trained on and what is validated on.

    Args:
        settings: With the fields of `SelectionSettings` and `DatasetSettings`.
        loaded: The training rows as the data set contains them.

    Returns:
        (the rows to train on; the rows to validate on, None if nothing is measured on any).

    Raises:
        UserError: The rows show a single person, so that none can be held out.
    """
    if not settings.uses_validation_rows:
        return loaded, None
    name = _split_name(settings)
    if name is not None:
        options = {"n": settings.n_validation, **settings.dataset_options}
        return loaded, data.load(settings.dataset, settings.dataset_root, name, **options)
    share = settings.validation_share or SHARE
    training, held_out = data.hold_out(loaded, share, settings.seed)
    if distributed.is_main():
        why = (
            "" if settings.validation_share else f" {settings.dataset} has no split to validate on:"
        )
        print(
            f"note:{why} {len(held_out):,} of {len(loaded):,} training rows, of people that the "
            "others do not show, are held out for validation"
        )
    return training, choose(held_out, settings.n_validation, settings.seed)


def _split_name(settings: Any) -> str | None:
    """The split to validate on, None if people are held out."""
    if settings.validation_share is not None:
        return None
    if settings.validation_split is not None:
        return settings.validation_split
    if data.is_mixture(settings.dataset) or settings.dataset_split == SPLIT:
        return None
    if is_test_split(settings, SPLIT):
        return None
    splits = data.splits_of(settings.dataset, settings.dataset_root, **settings.dataset_options)
    return SPLIT if SPLIT in splits else None


def choose(rows: datasets.Dataset, n: int | None, seed: int) -> datasets.Dataset:
    """A random choice of rows, in their order.

    Args:
        rows: To choose from.
        n: How many; None, or more than there are: all.
        seed: Of the choice.
    """
    if n is None or n >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:n]))


def identity(rows: datasets.Dataset | None) -> dict[str, Any]:
    """What must be the same when a run is resumed, of the rows to validate on."""
    return {} if rows is None else {"validation_data": data.fingerprint(rows, pictures=False)}


# --- generated answers ----------------------------------------------------------------------------


def scorer(
    settings: Any, benchmark: Benchmark, rows: datasets.Dataset, predictor_of: Callable[[Any], Any]
) -> Callable[[Any, bool], dict[str, float]]:
    """What measures generated answers: `train.validation.Validation.generate`.

    Args:
        settings: Of the run.
        benchmark: Its metrics are computed.
        rows: Validation rows; `settings.n_generate` of them are chosen.
        predictor_of: Makes a LocalModel of the network that is trained.
    """
    sample = choose(rows, settings.n_generate, settings.seed)
    scoring = getattr(settings, "scoring", "generate")

    def score(network: Any, shares: bool) -> dict[str, float]:
        predictor = predictor_of(network)
        answer = answering.answer_share if shares else answering.answer
        lines = answer(
            predictor, sample, benchmark, batch_size=settings.eval_batch_size, scoring=scoring
        )
        return scores_of(
            lines, benchmark, predictor.prompts, scoring, settings.metric_for_best_model
        )

    return score


def classifier_scorer(
    settings: Any, benchmark: Benchmark, texts: LabelTexts
) -> Callable[[datasets.Dataset], Callable[[Sequence[Prediction]], dict[str, float]]]:
    """What measures a CLIP's predictions about validation rows (`train.clip.validation`).

    Args:
        settings: Of the run.
        benchmark: Its metrics are computed.
        texts: Of the labels.

    Returns:
        A function of rows, which returns one of the predictions about them: {metric: value}.
    """

    def of_rows(rows: datasets.Dataset) -> Callable[[Sequence[Prediction]], dict[str, float]]:
        records = answering.undecoded_rows(rows)

        def score(predictions: Sequence[Prediction]) -> dict[str, float]:
            lines = [
                answering.prediction_record(row, benchmark, texts, prediction)
                for row, prediction in zip(records, predictions, strict=True)
            ]
            selected = settings.metric_for_best_model
            scores = scores_of(lines, benchmark, [texts], "generate", selected)
            del scores["valid_answers"]  # a classifier always answers
            return scores

        return score

    return of_rows


def scores_of(
    lines: Sequence[Any],
    benchmark: Benchmark,
    prompts: Sequence[Any],
    scoring: str,
    selected: str | None = None,
) -> dict[str, float]:
    """The benchmark's main metrics of predictions, and the share of valid answers.

    Args:
        lines: Of predictions.jsonl.
        benchmark: It defines the metrics.
        prompts: Of the model.
        scoring: How answers are read.
        selected: A metric that is included in addition.

    Returns:
        {metric: value} without those that are undefined; of a further block that has the same
        metric {block_metric: value}.
    """
    scores = evaluation.compute_metrics(lines, benchmark, prompts, model="", scoring=scoring)
    extra = benchmark.extra_metrics
    values: dict[str, float] = {}
    for block in scored_blocks(scores):
        for metric in of_kind(benchmark.all_metrics, block.kind):
            is_listed = metric.main or metric in extra or metric.name == selected
            if is_listed and (value := block.get(metric)) is not None:
                title = block.title.replace(" ", "_")
                key = metric.name if metric.name not in values else f"{title}_{metric.name}"
                values[key] = float(value)
    if scoring != "likelihood":
        values["valid_answers"] = valid_share(scores)
    return values
