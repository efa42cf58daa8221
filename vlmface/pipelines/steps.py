"""The steps that every pipeline of a vision-language model has: rows, evaluation, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import benchmarks, data
from vlmface.benchmarks import Benchmark
from vlmface.data import crop_cache, crops
from vlmface.data.crops import Views
from vlmface.evaluate import answering, report
from vlmface.evaluate import run as evaluation
from vlmface.pipelines import validation
from vlmface.run_dir import open_run
from vlmface.train import checks
from vlmface.utils import distributed, memory
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Args:
        loaded: The training rows as the data set contains them.
        training: The same rows with the views that the model is shown.
        test: The rows to evaluate on, with these views.
        validation: The rows to validate on while the model trains, with these views, or None.
        shared_people: For metrics.json: people who are in both, see `checks.shared_people`.
    """

    loaded: datasets.Dataset
    training: datasets.Dataset
    test: datasets.Dataset
    validation: datasets.Dataset | None
    shared_people: dict[str, Any]


def run_in_folder(settings: Any, train: Callable[[], None], **open_options: Any) -> int:
    """Call `train` in the opened folder `settings.output_dir`, unless its run is complete.

    Args:
        settings: Of the run.
        train: Trains and reports.
        **open_options: Of `run_dir.open_run`.

    Returns:
        The exit code.

    Raises:
        UserError: The launch, this machine or the folder does not fit the settings.
    """
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings, **open_options) as is_open:
        if is_open:
            train()
    return 0


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
        training, held_out = validation.split(settings, loaded)
        training = crop_cache.apply_views(training, views, frames)
        if held_out is not None:
            held_out = crop_cache.apply_views(held_out, views, frames)
        test_root = settings.benchmark_root or benchmark.root_beside(settings.dataset_root)
        test = benchmarks.load_rows(benchmark, test_root, settings.n_eval, views, frames)
    others: dict[str, Any] = {"test": (test, test_root)}
    if held_out is not None:
        others["validation"] = (held_out, settings.dataset_root)
    shared = checks.shared_people(training, settings.dataset_root, others)
    return Rows(loaded, training, test, held_out, shared)


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

    def predict(
        self, model: str, path: Path, settings: Any, processor: Any, adapter: str | None = None
    ) -> Any:
        """The predictions of a model on the test rows; read from `path` if they are there.

        Args:
            model: A run folder, or a base model.
            path: Where the predictions are stored.
            settings: Of the recipe: max_new_tokens and eval_batch_size.
            processor: Of a base model, as it is trained with.
            adapter: Folder of the adapter that training of a base model starts from.
        """
        if path.exists():
            return answering.read_lines(path)
        predictor = answering.open_model(
            model,
            prompts=self.prompts,
            processor=processor,
            adapter=adapter,
            max_new_tokens=settings.max_new_tokens,
        )
        predictor.views = predictor.views or crops.parse_views(getattr(settings, "views", None))
        return answering.predict_with(
            predictor,
            path,
            self.rows,
            self.benchmark,
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
        """Write metrics.json and then report.html, which marks a run as complete, and print the
        result.

        Args:
            run_dir: Folder of the run.
            models: The model before and after training.
            predictions: Of these two.
            training: For metrics.json: what training returned, and the rows it used.
        """
        training["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
        before, after = (
            evaluation.compute_metrics(
                lines, self.benchmark, self.prompts, model=model, scoring=self.scoring
            )
            for model, lines in zip(models, predictions, strict=True)
        )
        paired = evaluation.compare(*predictions, self.benchmark, self.prompts)
        scores = {"before": before, "after": after, "paired": paired, "train": dict(training)}
        text = json.dumps(scores, indent=2, ensure_ascii=False)
        atomic_write(run_dir / "metrics.json", text + "\n")
        images = dict(zip(self.rows["id"], self.rows["image"], strict=True))
        extra = self.benchmark.extra_metrics
        report.write_report(run_dir, images=images, baseline=self.baseline, extra=extra)
        lines = {
            name: evaluation.one_line_summary(scores[name], extra) for name in ("after", "before")
        }
        print(f"learnt: {lines['after']} (before: {lines['before']})")
        print(f"is in:  {run_dir} (weights, predictions, report.html)")
        print(f"next:   vlmface predict FACE.jpg --model {run_dir}")


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
