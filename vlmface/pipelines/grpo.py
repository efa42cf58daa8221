"""GRPO from a run's own answers: prepare, evaluate, train, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmface import benchmarks, prompts
from vlmface.data import crops
from vlmface.evaluate import answering
from vlmface.pipelines import steps
from vlmface.run_dir import open_run, start_run
from vlmface.train import checks, grpo, rewards
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
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings) as is_open:
        if is_open:
            train_and_evaluate(settings, used)
    return 0


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
    started = start_run(settings, identity)
    predict = partial(evaluation.predict, settings=settings, processor=start.processor)
    before = predict(settings.init_from, run_dir / "predictions_before.jsonl")
    result = grpo.train(start, encoded, samples, used, settings)
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
    rows = steps.load_rows(settings, benchmark, views, start.num_frames)
    return steps.Evaluation(benchmark, baseline, [start.prompt], rows.test), rows
