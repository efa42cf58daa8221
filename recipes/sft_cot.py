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

from vlmface import config, data, families, manifest, prompts
from vlmface.data import crops
from vlmface.evaluate import metrics, report
from vlmface.evaluate import run as evaluation
from vlmface.train import sft


def main(argv: Sequence[str]) -> int:
    settings = config.parse(sft.Settings, argv, default="sft_cot_tiny", usage=__doc__ or "")
    sft.check_processes(settings.num_processes)
    sft.use_all_cores()
    sft.spare_the_compiler()
    run_dir = Path(settings.output_dir)
    if sft.is_main():
        config.remember(
            settings, run_dir, free=("overwrite", "output_dir"), anew=settings.overwrite
        )
    sft.wait_for_everyone()
    if (run_dir / "report.html").exists():  # written last
        print(f"{run_dir} is complete: look at its report.html, or start with --overwrite")
        return 0

    # What is asked, of which model, about which faces.
    prompt = prompts.load(settings.prompt)
    benchmark = evaluation.load_benchmark(settings.benchmark)
    evaluation.check_space(benchmark, prompt)
    baseline = evaluation.load_baseline(benchmark)
    crop = crops.parse(settings.crop)
    base = manifest.resolve(settings.base)
    family = families.get(families.family_of(base))
    processor = family.load_processor(base)
    with sft.main_first():
        samples = data.load(
            settings.data,
            settings.data_root,
            settings.data_split,
            n=settings.n_train,
            **settings.data_options,
        )
        fingerprint = data.fingerprint(samples)
        if crop:
            samples = crops.cached(samples, crop)
        benchmark_root = settings.benchmark_root or settings.data_root
        faces = evaluation.load_rows(benchmark, benchmark_root, settings.n_eval, crop)
    rows, left_out = sft.encode_rows(
        samples, processor, family, prompt, max_length=settings.max_length, seed=settings.seed
    )

    ask = partial(
        evaluation.answer_once,
        rows=faces,
        benchmark=benchmark,
        prompt=prompt,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
    )
    before = ask(settings.base, run_dir / "predictions_before.jsonl")
    trained = sft.train(base, processor, family, rows, settings)
    trained |= {"n": len(rows), "left_out": left_out}
    if sft.is_main():
        manifest.save_prompt(prompt, run_dir)
        manifest.Manifest(
            recipe="sft_cot",
            family=family.NAME,
            base={"id": settings.base, "sha": manifest.weights_sha(base)},
            adapter=settings.uses_lora,
            policy=settings.policy,
            prompt={"id": prompt.id, "sha": prompt.sha},
            label_space={"id": prompt.space.id, "sha": prompt.space.sha},
            au_set=evaluation.au_set(benchmark, prompt),
            image=family.describe_image(processor),
            processor=manifest.processor_shas(run_dir),
            crop=crops.as_dict(crop),
            max_length=settings.max_length,
            generation={"max_new_tokens": settings.max_new_tokens},
            data={"name": settings.data, "split": settings.data_split, "n": len(rows),
                  "options": settings.data_options, "fingerprint": fingerprint},
            seed=settings.seed,
            limits=settings.limits,
        ).save(run_dir)  # fmt: skip
    sft.wait_for_everyone()
    after = ask(settings.output_dir, run_dir / "predictions.jsonl")
    if not sft.is_main():
        return 0

    aus = evaluation.au_set(benchmark, prompt)
    scores = {
        "before": evaluation.score(before, benchmark, prompt, model=settings.base),
        "after": evaluation.score(after, benchmark, prompt, model=settings.output_dir),
        "paired": metrics.compare(before, after, prompt.space, aus),
        "train": {**trained, "peak_rss_gib": round(sft.peak_rss_gib(), 3)},
    }
    sft.write_json(run_dir / "metrics.json", scores)
    images = dict(zip(faces["id"], faces["image"], strict=True))
    report.write_report(run_dir, images=images, baseline=baseline)
    learnt, knew = evaluation.summary(scores["after"]), evaluation.summary(scores["before"])
    print(f"learnt: {learnt} (before: {knew})")
    print(f"is in:  {run_dir} (adapter, predictions, report.html)")
    print(f"next:   vlmface predict FACE.jpg --model {run_dir}")
    return 0


if __name__ == "__main__":
    config.command(main)
