"""Train a model that answers already by what its answers are worth: GRPO with rewards for form,
emotion, action units and their agreement (Facial-R1's second stage).

    python recipes/grpo.py                                      # from the run of recipes/sft_cot.py
    python recipes/grpo.py --start runs/small --max_steps 50 --output_dir runs/grpo_small
    accelerate launch --num_processes 8 recipes/grpo.py --config grpo_facial_r1

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlmface import benchmarks, data, prompts
from vlmface.data import crop_cache, crops
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.run_dir import open_run, start_run
from vlmface.train import checks, grpo, rewards
from vlmface.utils import config, distributed, memory


def main(argv: Sequence[str]) -> int:
    settings = config.parse(grpo.Settings, argv, default="grpo_tiny", usage=__doc__ or "")
    used = rewards.parse(settings.rewards)
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings) as is_open:
        if is_open:
            train(settings, used)
    return 0


def train(settings: grpo.Settings, used: Sequence[rewards.Weighted]) -> None:
    """What the recipe does in its folder. Raises UserError."""
    run_dir = Path(settings.output_dir)

    # Where it starts, and the faces that it is asked about.
    start = grpo.start_of(settings)
    grpo.check_start(settings, start)
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [start.prompt])
    baseline = benchmarks.load_baseline(benchmark)
    views = crops.parse_views(start.crop)
    prompts.check_images([start.prompt], len(views), start.frames)
    with distributed.main_first():
        loaded = data.load(
            settings.data,
            settings.data_root,
            settings.data_split,
            n=settings.n_train,
            **settings.data_options,
        )
        faces = crop_cache.apply_views(loaded, views, start.frames)
        benchmark_root = settings.benchmark_root or benchmark.root_beside(settings.data_root)
        tested = benchmarks.load_rows(
            benchmark, benchmark_root, settings.n_eval, views, start.frames
        )
    shared = checks.shared_people(faces, settings.data_root, {"test": (tested, benchmark_root)})
    rows, samples, left_out = grpo.encode_prompts(faces, start, used, settings.max_new_tokens)
    rewards.check_truth(used, samples, start.prompt.space)

    same = start_run(settings, partial(grpo.identity, settings, loaded, rows, tested, start))
    ask = partial(
        answering.answer_once,
        rows=tested,
        benchmark=benchmark,
        prompts=[start.prompt],
        processor=start.processor,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
    )
    before = ask(settings.start, run_dir / "predictions_before.jsonl")
    trained = grpo.train(start, rows, samples, used, settings)
    trained |= {"n": len(rows), "left_out": left_out, **shared}
    if distributed.is_main():
        about = {"name": settings.data, "split": settings.data_split, "n": len(rows),
                 "options": settings.data_options, "fingerprint": same["data"]}  # fmt: skip
        grpo.write_manifest(start, settings, answering.au_set(benchmark, start.prompt), about)
    distributed.wait_for_everyone()
    after = ask(settings.output_dir, run_dir / "predictions.jsonl")
    if not distributed.is_main():
        return

    trained["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
    models = (settings.start, settings.output_dir)
    evaluation.conclude(
        run_dir, models, before, after, benchmark, [start.prompt], tested, trained, baseline
    )


if __name__ == "__main__":
    config.command(main)
