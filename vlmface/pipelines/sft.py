"""Supervised fine-tuning of a vision-language model: prepare, evaluate, train, evaluate, report.

The recipes sft_cot, sft_labels, sft_attributes and context_emotion are this pipeline with other
settings. `vlmface inspect` and the memory estimate call its preparation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlmface import benchmarks, families, label_spaces, manifest, prompts
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.families.base import Family
from vlmface.infer.local import LocalModel
from vlmface.pipelines import steps, validation
from vlmface.prompts import Prompt
from vlmface.run_dir import start_run
from vlmface.train import (
    augmentation,
    budget,
    checks,
    init_from,
    sft,
    task_sampling,
    text_only,
    trackers,
)
from vlmface.train.rows import count_conversations, encode_rows
from vlmface.train.settings import SFTSettings
from vlmface.train.validation import Validation, selection_of
from vlmface.utils import distributed

if TYPE_CHECKING:
    import datasets


def run(recipe: str, settings: SFTSettings) -> int:
    """Fine-tune a model in the folder `settings.output_dir`, or resume there.

    Args:
        recipe: Its name, for the manifest.
        settings: Of the run.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    settings = init_from.with_adapter(settings)
    checks.check_supported(settings, torch.cuda.is_available())
    return steps.run_in_folder(
        settings, lambda: train_and_evaluate(recipe, settings), can_be_extended=True
    )


def train_and_evaluate(recipe: str, settings: SFTSettings) -> None:
    """What `run` does in an opened folder."""
    run_dir = Path(settings.output_dir)
    model = load_model(settings)
    evaluation, rows = prepare_evaluation(settings, model)
    tasks = encode_tasks(settings, model, rows.training, settings.max_length)
    training_rows = join_tasks(tasks)
    checks.run_length(settings, checks.steps(settings, len(training_rows)))
    validation_tasks = encode_validation(settings, model, rows)
    measured = prepare_validation(settings, model, evaluation, rows, validation_tasks)

    def identity() -> dict[str, Any]:
        prompts, base = model.prompts, model.base
        values = sft.identity(settings, rows.loaded, training_rows, rows.test, prompts, base)
        return values | validation.identity(rows.validation) | init_from.identity(settings)

    started = start_run(settings, identity, can_be_extended=True)
    predict = partial(evaluation.predict, settings=settings, processor=model.processor)
    before_path = run_dir / "predictions_before.jsonl"
    before = predict(settings.base_model, before_path, adapter=settings.init_from)
    base, processor, family = model.base, model.processor, model.family
    with trackers.environment(settings):
        result = sft.train(base, processor, family, training_rows, settings, measured)
    result |= describe_rows(tasks, len(training_rows)) | rows.shared_people
    if validation_tasks:
        num_rows = sum(len(task.rows) for task in validation_tasks)
        result["validation"] = describe_rows(validation_tasks, num_rows)
    if distributed.is_main():
        data = steps.describe_data(settings, len(training_rows), started["data"])
        au_set = evaluation.au_set
        sft.write_manifest(recipe, settings, describe_model(settings, model), au_set, data)
    distributed.wait_for_everyone()
    after = predict(settings.output_dir, run_dir / "predictions.jsonl")
    if distributed.is_main():
        models = (settings.init_from or settings.base_model, settings.output_dir)
        evaluation.write_report(run_dir, models, (before, after), result)


# --- the model and its prompts --------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A base model before its weights are loaded.

    Args:
        base: Its folder.
        family: Its family.
        processor: Its processor, with the pixel budget of the settings.
        prompts: The prompts that it is trained and evaluated with.
        views: Of each image.
    """

    base: Path
    family: Family
    processor: Any
    prompts: Sequence[Prompt]
    views: crops.Views


def load_prompts(settings: SFTSettings) -> list[Prompt]:
    """The prompts of a run, with the label space that the settings ask for.

    Raises:
        UserError: A prompt does not exist, cannot be asked with the label space, or is about
            another number of images than the model is shown.
    """
    named = settings.label_space
    space = None if named is None else label_spaces.space(named)
    loaded = [prompts.load(name, space) for name in settings.prompts]
    checks.rationale_source(settings, loaded)
    task_sampling.check_prompts(settings, loaded)
    prompts.check_images(loaded, len(crops.parse_views(settings.views)), settings.num_frames)
    return loaded


def load_model(settings: SFTSettings, processor: Any = None) -> Model:
    """The base model of a run, without its weights, and its prompts.

    Args:
        settings: Of the run.
        processor: Of the base, if it is loaded already.

    Raises:
        UserError: The model or a prompt does not exist, or the model lacks a part that is trained.
    """
    loaded_prompts = load_prompts(settings)
    base = manifest.resolve(settings.base_model)
    family = families.get(families.family_of(base))
    checks.check_trainable(settings, family)
    if processor is None:
        processor = family.load_processor(base)
    families.set_max_pixels(family, processor, settings.max_pixels)
    return Model(base, family, processor, loaded_prompts, crops.parse_views(settings.views))


def describe_model(settings: SFTSettings, model: Model) -> sft.TrainedModel:
    """What the manifest contains about the model."""
    return sft.TrainedModel(
        base=model.base,
        base_id=settings.base_model,
        family=model.family,
        processor=model.processor,
        prompts=model.prompts,
        trainable=settings.trainable,
        views=settings.views,
        num_frames=settings.num_frames,
        max_length=settings.max_length,
        quantization=settings.quantization,
        init_from=sft.describe_start(settings.init_from),
    )


# --- rows -----------------------------------------------------------------------------------------


def prepare_evaluation(settings: SFTSettings, model: Model) -> tuple[steps.Evaluation, steps.Rows]:
    """What is evaluated, and all rows of the run.

    Raises:
        UserError: The benchmark does not score every prompt, or the data cannot be read.
    """
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    scored = answering.scored_prompts(benchmark, model.prompts)
    if unscored := [prompt.id for prompt in model.prompts if prompt not in scored]:
        raise UserError(
            f"benchmark {benchmark.id} does not score {', '.join(unscored)}: use another one, or "
            "leave them out"
        )
    baseline = benchmarks.load_baseline(benchmark)
    rows = steps.load_rows(settings, benchmark, model.views, settings.num_frames)
    evaluation = steps.Evaluation(benchmark, baseline, model.prompts, rows.test, settings.scoring)
    return evaluation, rows


@dataclass(frozen=True)
class Task:
    """The encoded rows of one prompt, or of the file of texts.

    Args:
        prompt: None for the texts without images.
        rows: Of `encode_rows`; their `row` is the number of the sample among all.
        skipped: How many rows were skipped, by reason.
    """

    prompt: Prompt | None
    rows: datasets.Dataset
    skipped: dict[str, int]

    @property
    def name(self) -> str:
        """The prompt's id, or "text"."""
        return "text" if self.prompt is None else self.prompt.id

    def too_long(self, limit: int) -> int:
        """How many rows are longer than a limit."""
        return sum(length > limit for length in self.rows["length"])


def load_samples(settings: SFTSettings, model: Model) -> datasets.Dataset:
    """The training rows alone, as `prepare_evaluation` loads them."""
    training, _ = validation.split(settings, steps.load_training_rows(settings))
    return crop_cache.apply_views(training, model.views, settings.num_frames)


def encode_tasks(
    settings: SFTSettings, model: Model, samples: datasets.Dataset, max_length: int
) -> list[Task]:
    """Encode the rows that the run trains on, for each prompt, then the texts without images.

    Lowers the processor's pixel budget first, as far as `settings.max_length` requires.

    Args:
        settings: Of the run.
        model: Its model.
        samples: FaceSample rows with the views that the model is shown.
        max_length: Longer rows are skipped; a run's own is `settings.max_length`.

    Raises:
        UserError: No row of some prompt can be trained on.
    """
    seed, family, processor = settings.seed, model.family, model.processor
    if (n := count_conversations(samples, model.prompts)) and distributed.is_main():
        print(f"{n:,} of {len(samples):,} rows are conversations: every answer is trained on")
    budget.fit_pixels(
        samples, processor, family, model.prompts, max_length=settings.max_length, seed=seed
    )
    tasks = []
    for prompt, (prompt_rows, index) in zip(
        model.prompts, choose_rows(settings, model.prompts, samples), strict=True
    ):
        if settings.augment == "flip" and prompt.has_rationale:
            prompt_rows = augmentation.with_mirrored_rationales(prompt_rows)
        rows, skipped = encode_rows(
            prompt_rows, processor, family, prompt, max_length=max_length, seed=seed
        )
        tasks.append(Task(prompt, task_sampling.number(rows, index), skipped))
    if settings.text_only_data:
        features, row = tasks[0].rows.features, len(samples)
        texts, skipped = text_only.encode_file(
            settings.text_only_data, processor, family, max_length, features=features, row=row
        )
        tasks.append(Task(None, texts, skipped))
    return tasks


def choose_rows(
    settings: SFTSettings, run_prompts: Sequence[Prompt], samples: datasets.Dataset
) -> list[tuple[datasets.Dataset, np.ndarray]]:
    """For each prompt its training rows, with weights if the settings ask for any, and the number
    of each row's sample.

    Raises:
        UserError: The settings need labels or votes that the rows lack.
    """
    is_weighted = settings.soft_labels or settings.label_weight_power > 0
    if settings.balance_by == "none" and not is_weighted:
        return [(samples, np.arange(len(samples))) for _ in run_prompts]
    targets = task_sampling.row_targets(samples, run_prompts, soft=settings.soft_labels)
    labels = [task_sampling.most_likely(of_prompt) for of_prompt in targets]
    selection = task_sampling.select_rows(labels, settings.balance_by, settings.seed)
    if not is_weighted:
        return [(samples.select(index), index) for index in selection]
    power = settings.label_weight_power
    return [
        task_sampling.training_rows(samples, index, prompt, of_prompt, power)
        for prompt, index, of_prompt in zip(run_prompts, selection, targets, strict=True)
    ]


def encode_validation(settings: SFTSettings, model: Model, rows: steps.Rows) -> list[Task]:
    """Encode the validation rows for each prompt, if their loss is measured.

    Their numbers are above those of the training rows and of the texts without images.

    Args:
        settings: Of the run.
        model: Its model, with the pixel budget of the training rows.
        rows: Of the run.

    Raises:
        UserError: No row of some prompt can be measured.
    """
    if rows.validation is None or settings.eval_steps is None:
        return []
    index = len(rows.training) + 1 + np.arange(len(rows.validation))
    tasks = []
    for prompt in model.prompts:
        encoded, skipped = encode_rows(
            rows.validation,
            model.processor,
            model.family,
            prompt,
            max_length=settings.max_length,
            seed=settings.seed,
        )
        tasks.append(Task(prompt, task_sampling.number(encoded, index), skipped))
    return tasks


def prepare_validation(
    settings: SFTSettings,
    model: Model,
    evaluation: steps.Evaluation,
    rows: steps.Rows,
    tasks: Sequence[Task],
) -> Validation | None:
    """What is measured while the model trains, None for nothing.

    Args:
        settings: Of the run.
        model: Its model.
        evaluation: Its evaluation, for the metrics of generated answers.
        rows: Of the run.
        tasks: Of `encode_validation`.
    """
    if rows.validation is None:
        return None

    def predictor_of(network: Any) -> LocalModel:
        limit, name = settings.max_new_tokens, model.family.NAME
        predictor = LocalModel(network, model.processor, model.prompts[0], name, limit)
        predictor.prompts = list(model.prompts)
        return predictor

    generate = None
    if settings.eval_generate_steps is not None:
        generate = validation.scorer(settings, evaluation.benchmark, rows.validation, predictor_of)
    return Validation(
        settings.validation_steps,
        join_tasks(tasks) if tasks else None,
        generate,
        selection_of(settings),
        settings.batch_size,
    )


def join_tasks(tasks: Sequence[Task]) -> datasets.Dataset:
    """The rows of all tasks as one data set, as they are trained on.

    Rows of one length are batched together. With several prompts, whose rows are each all equally
    long, every batch would be of one prompt: their lengths are rounded, so that prompts mix.
    """
    from datasets import concatenate_datasets

    of_prompts = [task.rows for task in tasks if task.prompt is not None]
    if len(of_prompts) > 1:
        of_prompts = [task_sampling.round_lengths(rows) for rows in of_prompts]
    of_texts = [task.rows for task in tasks if task.prompt is None]
    joined = [*of_prompts, *of_texts]
    return joined[0] if len(joined) == 1 else concatenate_datasets(joined)


def describe_rows(tasks: Sequence[Task], n: int) -> dict[str, Any]:
    """For metrics.json: how many rows were trained on, by prompt, and how many were skipped."""
    of_prompts = [task for task in tasks if task.prompt is not None]
    several = len(of_prompts) > 1
    skipped = Counter[str]()
    for task in tasks:
        prefix = f"{task.name}: " if several or task.prompt is None else ""
        skipped.update({f"{prefix}{reason}": count for reason, count in task.skipped.items()})
    by_prompt = {task.name: len(task.rows) for task in of_prompts}
    return {"n": n, "n_by_prompt": by_prompt, "skipped": dict(skipped)}
