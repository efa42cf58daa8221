"""GRPO from a run's own answers: prepare, evaluate, train, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import benchmarks, prompts
from vlmface.data import crops
from vlmface.evaluate import answering
from vlmface.infer.local import LocalModel
from vlmface.pipelines import steps, validation
from vlmface.run_dir import start_run
from vlmface.train import grpo, rewards, task_sampling, trackers
from vlmface.train.validation import Validation, selection_of
from vlmface.utils import distributed

if TYPE_CHECKING:
    from vlmface.train.grpo import Settings, Start


def run(settings: Settings) -> int:
    """Train a model in the folder `settings.output_dir`, or resume there.

    Args:
        settings: Of the run.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    used = rewards.parse(settings.rewards)
    return steps.run_in_folder(
        settings, lambda: train_and_evaluate(settings, used), can_be_extended=True
    )


def train_and_evaluate(settings: Settings, used: Sequence[rewards.WeightedReward]) -> None:
    """What `run` does in an opened folder."""
    run_dir = Path(settings.output_dir)
    start = grpo.start_of(settings)
    grpo.check_start(settings, start)
    evaluation, rows = prepare_evaluation(settings, start)
    encoded, samples, skipped = grpo.encode_prompts(
        rows.training, start, used, settings.max_new_tokens
    )
    rewards.check_truth(used, samples, start.prompt.space)

    identity = partial(grpo.identity, settings, rows.loaded, encoded, rows.test, start)
    started = start_run(
        settings,
        lambda: identity() | validation.identity(rows.validation),
        can_be_extended=True,
    )
    predict = partial(evaluation.predict, settings=settings, processor=start.processor)
    before = predict(settings.init_from, run_dir / "predictions_before.jsonl")
    with trackers.environment(settings):
        measured = prepare_validation(settings, start, evaluation, rows)
        result = grpo.train(start, encoded, samples, used, settings, measured)
    result |= {"n": len(encoded), "skipped": skipped, **rows.shared_people}
    if distributed.is_main():
        data = steps.describe_data(settings, len(encoded), started["data"])
        grpo.write_manifest(start, settings, evaluation.au_set, data)
    distributed.wait_for_everyone()
    after = predict(settings.output_dir, run_dir / "predictions.jsonl")
    if distributed.is_main():
        models = (settings.init_from, settings.output_dir)
        evaluation.write_report(run_dir, models, (before, after), result)


def prepare_evaluation(settings: Settings, start: Start) -> tuple[steps.Evaluation, steps.Rows]:
    """What is evaluated, and all rows of the run.

    Raises:
        UserError: The benchmark does not score the prompt, or the data cannot be read.
    """
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [start.prompt])
    baseline = benchmarks.load_baseline(benchmark)
    views = crops.parse_views(start.views)
    prompts.check_images([start.prompt], len(views), start.num_frames)
    task_sampling.check_balance(settings.balance_by, [start.prompt])
    rows = steps.load_rows(settings, benchmark, views, start.num_frames)
    balanced = task_sampling.balanced_rows(
        rows.training, start.prompt, settings.balance_by, settings.seed
    )
    rows = replace(rows, training=balanced)
    return steps.Evaluation(benchmark, baseline, [start.prompt], rows.test), rows


def prepare_validation(
    settings: Settings, start: Start, evaluation: steps.Evaluation, rows: steps.Rows
) -> Validation | None:
    """What is measured while the model trains, None for nothing.

    Args:
        settings: Of the run.
        start: The model that training starts from.
        evaluation: Its evaluation, for the metrics of generated answers.
        rows: Of the run.
    """
    if rows.validation is None:
        return None

    def predictor_of(network: Any) -> LocalModel:
        name, limit = start.family.NAME, settings.max_new_tokens
        return LocalModel(network, start.processor, start.prompt, name, limit)

    generate = validation.scorer(settings, evaluation.benchmark, rows.validation, predictor_of)
    steps_of = settings.validation_steps
    return Validation(steps_of, generate=generate, selection=selection_of(settings))
