"""The steps that every pipeline of a vision-language model has: rows, evaluation, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import benchmarks, data
from vlmface.benchmarks import Benchmark
from vlmface.data import crop_cache
from vlmface.data.crops import Views
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.train import checks
from vlmface.utils import distributed, memory

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Args:
        loaded: The training rows as the data set contains them.
        training: The same rows with the views that the model is shown.
        test: The rows to evaluate on, with these views.
        shared_people: For metrics.json: people who are in both, see `checks.shared_people`.
    """

    loaded: datasets.Dataset
    training: datasets.Dataset
    test: datasets.Dataset
    shared_people: dict[str, Any]


def load_training_rows(settings: Any) -> datasets.Dataset:
    """The rows that `settings` name, as the data set contains them."""
    return data.load(
        settings.dataset,
        settings.dataset_root,
        settings.dataset_split,
        n=settings.n_train,
        **settings.dataset_options,
    )


def load_rows(settings: Any, benchmark: Benchmark, views: Views, frames: int) -> Rows:
    """Load, or render, all rows of a run, in the main process first.

    Args:
        settings: Of a recipe: dataset and evaluation.
        benchmark: What the model is evaluated on.
        views: Of each image.
        frames: Of a video, for each view.
    """
    with distributed.main_first():
        loaded = load_training_rows(settings)
        training = crop_cache.apply_views(loaded, views, frames)
        test_root = settings.benchmark_root or benchmark.root_beside(settings.dataset_root)
        test = benchmarks.load_rows(benchmark, test_root, settings.n_eval, views, frames)
    shared = checks.shared_people(training, settings.dataset_root, {"test": (test, test_root)})
    return Rows(loaded, training, test, shared)


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated before and after training, and how.

    Args:
        benchmark: What is scored.
        baseline: Result of a reference model, for the report; None if there is none.
        prompts: Prompts of a vision-language model, or label texts of a CLIP.
        rows: The test rows.
        scoring: How answers are read (answering.SCORINGS).
    """

    benchmark: Benchmark
    baseline: Mapping[str, Any] | None
    prompts: Sequence[Any]
    rows: datasets.Dataset
    scoring: str = "generate"

    @property
    def au_set(self) -> list[int]:
        """The action units that the answers to some prompt contain, sorted."""
        sets = [answering.au_set(self.benchmark, prompt) for prompt in self.prompts]
        return sorted({au for units in sets for au in units})

    def predict(self, model: str, path: Path, settings: Any, processor: Any) -> Any:
        """The predictions of a model on the test rows; read from `path` if they are there.

        Args:
            model: A run folder, or a base model.
            path: Where the predictions are stored.
            settings: Of the recipe: max_new_tokens and eval_batch_size.
            processor: Of a base model, as it is trained with.
        """
        return answering.predict_cached(
            model,
            path,
            rows=self.rows,
            benchmark=self.benchmark,
            prompts=self.prompts,
            processor=processor,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.eval_batch_size,
            scoring=self.scoring,
        )

    def write_report(
        self,
        run_dir: Path,
        models: tuple[str, str],
        predictions: tuple[Any, Any],
        training: dict[str, Any],
    ) -> None:
        """Write metrics.json and report.html of a run, and print the result.

        Args:
            run_dir: Folder of the run.
            models: The model before and after training.
            predictions: Of these two.
            training: For metrics.json: what training returned, and the rows it used.
        """
        training["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
        evaluation.write_run_results(
            run_dir,
            models,
            *predictions,
            self.benchmark,
            self.prompts,
            self.rows,
            training,
            self.baseline,
            self.scoring,
        )


def describe_data(settings: Any, n: int, fingerprint: str) -> dict[str, Any]:
    """The manifest's `dataset`: what a model was trained on.

    Args:
        settings: Of a recipe.
        n: Number of rows that were trained on, after those that had to be skipped.
        fingerprint: Of the data set.
    """
    file = {}
    if data.is_dataset_file(settings.dataset):
        file = {"file": data.dataset_module(settings.dataset).to_mapping()}
    return {
        "name": settings.dataset,
        "split": settings.dataset_split,
        "n": n,
        "options": settings.dataset_options,
        "fingerprint": fingerprint,
        **file,
    }
