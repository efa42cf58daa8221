"""Teach a vision-language model to answer questions on a face with a word: gender, age group, race,
emotion. One model may learn several of them.

    python recipes/sft_attributes.py                              # vlmface-tiny on rendered faces
    python recipes/sft_attributes.py --prompt facescan_gender --output_dir runs/gender
    accelerate launch recipes/sft_attributes.py --config sft_attributes_paligemma

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlmface import benchmarks, data, families, manifest, prompts
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.run_dir import open_run, start_run
from vlmface.train import budget, checks, sft, task_sampling, text_only
from vlmface.train.rows import encode_rows
from vlmface.train.settings import AttributeSettings, SFTSettings
from vlmface.utils import config, distributed, memory


def main(argv: Sequence[str]) -> int:
    settings = config.parse(
        AttributeSettings, argv, default="sft_attributes_tiny", usage=__doc__ or ""
    )
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
    asked = [prompts.load(name) for name in settings.prompts]
    task_sampling.check_balance(settings.balance, asked)
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    scored = answering.scored_prompts(benchmark, asked)
    if unscored := [prompt.id for prompt in asked if prompt not in scored]:
        raise UserError(
            f"benchmark {benchmark.id} does not score {', '.join(unscored)}: use another one, or "
            "leave them out"
        )
    baseline = benchmarks.load_baseline(benchmark)
    views = crops.parse_views(settings.crop)
    prompts.check_images(asked, len(views), settings.frames)
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

    # Each question gets its rows; all of them are trained on together.
    shared = checks.shared_people(samples, settings.data_root, {"test": (faces, benchmark_root)})
    length = {"max_length": settings.max_length, "seed": settings.seed}
    budget.fit_pixels(samples, processor, family, asked, **length)
    chosen = task_sampling.select_rows(
        task_sampling.row_labels(samples, asked), settings.balance, settings.seed
    )
    parts, left_out = [], Counter[str]()
    for prompt, index in zip(asked, chosen, strict=True):
        encoded, lost = encode_rows(samples.select(index), processor, family, prompt, **length)
        parts.append(encoded)
        left_out.update({f"{prompt.id}: {reason}": n for reason, n in lost.items()})
    rows = task_sampling.concatenate(parts, chosen)
    if settings.text_data:
        rows, lost = text_only.append_text_rows(
            rows, settings.text_data, processor, family, settings.max_length
        )
        left_out |= lost
    checks.warmup(settings, checks.steps(settings, len(rows)))

    same = start_run(settings, partial(sft.identity, settings, loaded, rows, faces, asked, base))
    ask = partial(
        answering.answer_once,
        rows=faces,
        benchmark=benchmark,
        prompts=asked,
        processor=processor,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
    )
    before = ask(settings.base, run_dir / "predictions_before.jsonl")
    trained = sft.train(base, processor, family, rows, settings)
    trained |= {
        "n": len(rows),
        "n_by_prompt": {p.id: len(part) for p, part in zip(asked, parts, strict=True)},
        "left_out": dict(left_out),
        **shared,
    }
    if distributed.is_main():
        about = {"name": settings.data, "split": settings.data_split, "n": len(samples),
                 "options": settings.data_options, "fingerprint": same["data"]}  # fmt: skip
        aus = sorted({au for prompt in asked for au in answering.au_set(benchmark, prompt)})
        sft.write_manifest("sft_attributes", settings, base, family, processor, asked, aus, about)
    distributed.wait_for_everyone()
    after = ask(settings.output_dir, run_dir / "predictions.jsonl")
    if not distributed.is_main():
        return

    trained["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
    models = (settings.base, settings.output_dir)
    evaluation.conclude(run_dir, models, before, after, benchmark, asked, faces, trained, baseline)


if __name__ == "__main__":
    config.command(main)
