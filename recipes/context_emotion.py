"""Teach a model what somebody feels or does from a face and what is around it: several views of one
picture, or frames of a clip, at once.

    python recipes/context_emotion.py                         # vlmface-tiny on rendered scenes
    python recipes/context_emotion.py --ablation true         # face, context and both, in one table
    python recipes/context_emotion.py --model clip-caer       # a CLIP that joins the views
    accelerate launch recipes/context_emotion.py --config context_vlm_llava --data_root /data/CAER-S

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmface import benchmarks, data, families, manifest
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.pipelines import clip, context_ablation
from vlmface.prompts import Prompt
from vlmface.run_dir import open_run, start_run
from vlmface.train import budget, checks, sft
from vlmface.train.clip.settings import ContextSettings
from vlmface.train.rows import encode_rows
from vlmface.utils import config, distributed, memory

CONFIG, CLIP_CONFIG = "context_vlm_tiny", "clip_caer_tiny"


def main(argv: Sequence[str]) -> int:
    kinds = {"vlm": vlm, "clip-caer": clip_caer}
    kind = config.peek("model", argv, default=CONFIG) or "vlm"
    if kind not in kinds:
        raise UserError(f"model is {kind!r}: use one of {', '.join(kinds)}")
    return kinds[kind](argv)


def vlm(argv: Sequence[str]) -> int:
    """A vision-language model that is asked a prompt about the pictures."""
    settings = config.parse(context_ablation.Settings, argv, default=CONFIG, usage=__doc__ or "")
    distributed.check_processes(settings.num_processes)
    checks.check_machine(settings)
    distributed.set_cpu_threads()
    if not settings.ablation:
        return train(settings)
    return ablation(settings, context_ablation.arms(settings), train)


def clip_caer(argv: Sequence[str]) -> int:
    """A CLIP that joins the views, and a transformer over the frames of each."""
    settings = config.parse(ContextSettings, argv, default=CLIP_CONFIG, usage=__doc__ or "")
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    distributed.set_cpu_threads()
    if not settings.ablation:
        return train_clip(settings)
    return ablation(settings, context_ablation.clip_arms(settings), train_clip)


def ablation(settings: Any, arms: Mapping[str, Any], train: Callable[[Any], int]) -> int:
    """One model after the other, and a table of all."""
    folder = Path(settings.output_dir)
    page = f"{context_ablation.ABLATION}.html"
    with open_run(settings, last=page) as is_open:
        if not is_open:
            return 0
        start_run(settings, dict)
        for name, arm in arms.items():
            shown = ", ".join(view.show for view in crops.parse_views(arm.crop))
            print(f"--- {name}: {shown}", flush=True)
            train(arm)
        print(context_ablation.table(context_ablation.conclude(folder)))
        print(f"page: {folder / page}")
    return 0


def train_clip(settings: ContextSettings) -> int:
    """One CLIP, evaluated before and after."""
    settings.check()  # an arm of an ablation has other views
    with open_run(settings) as is_open:
        if is_open:
            clip.run("context_emotion", settings)
    return 0


def train(settings: context_ablation.Settings) -> int:
    """One model, evaluated before and after."""
    prompt = settings.load_prompt()
    with open_run(settings) as is_open:
        if is_open:
            train_vlm(settings, prompt)
    return 0


def train_vlm(settings: context_ablation.Settings, prompt: Prompt) -> None:
    """What `train` does in the run's folder. Raises UserError."""
    run_dir = Path(settings.output_dir)

    # Which model is asked, about which pictures.
    views = settings.views
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [prompt])
    baseline = benchmarks.load_baseline(benchmark)
    base = manifest.resolve(settings.base)
    family = families.get(families.family_of(base))
    checks.check_policy(settings, family)
    processor = family.load_processor(base)
    families.set_max_pixels(family, processor, settings.max_pixels)
    with distributed.main_first():
        loaded = data.load(
            settings.data,
            settings.data_root,
            settings.data_split,
            n=settings.n_train,
            **settings.data_options,
        )
        samples = crop_cache.apply_views(loaded, views, settings.frames)
        root = settings.benchmark_root or benchmark.root_beside(settings.data_root)
        tested = benchmarks.load_rows(benchmark, root, settings.n_eval, views, settings.frames)
    shared = checks.shared_people(samples, settings.data_root, {"test": (tested, root)})
    length = {"max_length": settings.max_length, "seed": settings.seed}
    budget.fit_pixels(samples, processor, family, [prompt], **length)
    rows, left_out = encode_rows(samples, processor, family, prompt, **length)
    checks.warmup(settings, checks.steps(settings, len(rows)))

    same = start_run(
        settings, partial(sft.identity, settings, loaded, rows, tested, [prompt], base)
    )
    ask = partial(
        answering.answer_once,
        rows=tested,
        benchmark=benchmark,
        prompts=[prompt],
        processor=processor,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
        mode=settings.mode,
    )
    before = ask(settings.base, run_dir / "predictions_before.jsonl")
    trained = sft.train(base, processor, family, rows, settings)
    trained |= {"n": len(rows), "left_out": left_out, **shared}
    if distributed.is_main():
        about = {"name": settings.data, "split": settings.data_split, "n": len(rows),
                 "options": settings.data_options, "fingerprint": same["data"]}  # fmt: skip
        sft.write_manifest(
            "context_emotion", settings, base, family, processor, [prompt], [], about
        )
    distributed.wait_for_everyone()
    after = ask(settings.output_dir, run_dir / "predictions.jsonl")
    if not distributed.is_main():
        return

    trained["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
    models = (settings.base, settings.output_dir)
    evaluation.conclude(
        run_dir, models, before, after, benchmark, [prompt], tested, trained, baseline,
        settings.mode,
    )  # fmt: skip


if __name__ == "__main__":
    config.command(main)
