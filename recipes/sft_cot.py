"""Teach a vision-language model to name the muscles that moved, explain them and conclude the
emotion: supervised fine-tuning on rationales that rules write from action units.

    python recipes/sft_cot.py                                   # vlmface-tiny on rendered faces
    python recipes/sft_cot.py --n_train 1000 --output_dir runs/small
    accelerate launch --num_processes 8 recipes/sft_cot.py --config sft_cot_llava

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlmface import benchmarks, data, families, manifest, prompts
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.run_dir import open_run, start_run
from vlmface.train import budget, checks, sft, text_only
from vlmface.train.rows import encode_rows
from vlmface.train.settings import SFTSettings
from vlmface.utils import config, distributed, memory


def main(argv: Sequence[str]) -> int:
    settings = config.parse(SFTSettings, argv, default="sft_cot_tiny", usage=__doc__ or "")
    distributed.check_processes(settings.num_processes)
    checks.check_machine(settings)
    distributed.set_cpu_threads()
    with open_run(settings) as is_open:
        if is_open:
            train(settings)
    return 0


def train(settings: SFTSettings) -> None:
    """What the recipe does in its folder. Raises UserError."""
    run_dir = Path(settings.output_dir)

    # What is asked, of which model, about which faces.
    if len(settings.prompts) != 1:
        raise UserError(f"prompt is {settings.prompt}: for several use recipes/sft_attributes.py")
    prompt = prompts.load(settings.prompts[0])
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [prompt])
    baseline = benchmarks.load_baseline(benchmark)
    views = crops.parse_views(settings.crop)
    prompts.check_images([prompt], len(views), settings.frames)
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
        benchmark_root = settings.benchmark_root or benchmark.root_beside(settings.data_root)
        faces = benchmarks.load_rows(
            benchmark, benchmark_root, settings.n_eval, views, settings.frames
        )
    shared = checks.shared_people(samples, settings.data_root, {"test": (faces, benchmark_root)})
    length = {"max_length": settings.max_length, "seed": settings.seed}
    budget.fit_pixels(samples, processor, family, [prompt], **length)
    rows, left_out = encode_rows(samples, processor, family, prompt, **length)
    if settings.text_data:
        rows, lost = text_only.append_text_rows(
            rows, settings.text_data, processor, family, settings.max_length
        )
        left_out |= lost
    checks.warmup(settings, checks.steps(settings, len(rows)))

    same = start_run(settings, partial(sft.identity, settings, loaded, rows, faces, [prompt], base))
    ask = partial(
        answering.answer_once,
        rows=faces,
        benchmark=benchmark,
        prompts=[prompt],
        processor=processor,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
    )
    before = ask(settings.base, run_dir / "predictions_before.jsonl")
    trained = sft.train(base, processor, family, rows, settings)
    trained |= {"n": len(rows), "left_out": left_out, **shared}
    if distributed.is_main():
        about = {"name": settings.data, "split": settings.data_split, "n": len(rows),
                 "options": settings.data_options, "fingerprint": same["data"]}  # fmt: skip
        aus = answering.au_set(benchmark, prompt)
        sft.write_manifest("sft_cot", settings, base, family, processor, [prompt], aus, about)
    distributed.wait_for_everyone()
    after = ask(settings.output_dir, run_dir / "predictions.jsonl")
    if not distributed.is_main():
        return

    trained["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
    models = (settings.base, settings.output_dir)
    evaluation.conclude(
        run_dir, models, before, after, benchmark, [prompt], faces, trained, baseline
    )


if __name__ == "__main__":
    config.command(main)
