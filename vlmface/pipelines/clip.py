"""A whole run of a CLIP recipe: what it answers before, training, what it answers after, report."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from vlmface import benchmarks, data, label_texts, manifest
from vlmface.clip import checkpoint, model
from vlmface.clip.classifier import Classifier
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.infer.clip import WEIGHTS, ClipModel
from vlmface.run_dir import start_run
from vlmface.train import checks
from vlmface.train.clip.dataset import labelled
from vlmface.train.clip.model_selection import HeldOutSet
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import train
from vlmface.utils import distributed, memory
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # that "auto" chooses among


def run(recipe: str, settings: Settings) -> None:
    """Do it, or go on where it was stopped. Raises UserError."""
    run_dir = Path(settings.output_dir)
    asked = label_texts.load(settings.prompt)
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [asked])
    baseline = benchmarks.load_baseline(benchmark)
    views = crops.parse_views(settings.crop)
    with distributed.main_first():
        loaded = data.load(
            settings.data, settings.data_root, settings.data_split, n=settings.n_train,
            **settings.data_options,
        )  # fmt: skip
        validation: datasets.Dataset | None = None
        held: datasets.Dataset | None = None
        if settings.validation_split:
            validation = data.load(
                settings.data, settings.data_root, settings.validation_split,
                **settings.data_options,
            )  # fmt: skip
            held = crop_cache.apply_views(validation, views, settings.frames)
        root = settings.benchmark_root or benchmark.root_beside(settings.data_root)
        faces = benchmarks.load_rows(benchmark, root, settings.n_eval, views, settings.frames)
        samples = crop_cache.apply_views(loaded, views, settings.frames)
    if settings.validation_share:
        samples, held = data.hold_out(samples, settings.validation_share, settings.seed)
    parts: dict[str, Any] = {"test": (faces, root)}
    if settings.validation_split:
        parts["validation"] = (held, settings.data_root)
    shared = checks.shared_people(samples, settings.data_root, parts)
    rows, _, affects, _ = labelled(samples, asked)
    checks.warmup(settings, checks.steps(settings, len(rows)))
    if settings.affect != "none" and affects.isnan().all():
        raise UserError(
            f"affect is {settings.affect}, but no row of {settings.data} has valence or arousal: "
            "set affect: none, or use data that has"
        )

    def answers(classifier: Classifier, name: str) -> list[dict[str, Any]]:
        return answering.answer_kept(
            ClipModel(classifier, views), run_dir / name, faces, benchmark,
            batch_size=settings.eval_batch_size,
        )  # fmt: skip

    clip = model.load_clip(settings.base, device=distributed.device())
    sha = model.weights_sha(clip)

    def identity() -> dict[str, Any]:
        return {
            "data": data.fingerprint(loaded),
            "rows": len(samples),
            "validation_data": None if validation is None else data.fingerprint(validation),
            "test_data": data.fingerprint(faces, pictures=False),
            "prompts": [f"{asked.id} {asked.sha} {asked.space.sha}"],
            "base_weights": sha,
        }

    same = start_run(settings, identity)
    shape = settings.shape(max(1, len(views)))
    untouched = dataclasses.replace(
        shape, image="frozen", text="frozen", head="text", affect="none", negative_weight=0.0,
        time="none" if settings.frames == 1 else "mean",
    )  # fmt: skip
    # What cannot be built is refused before the first evaluation.
    Classifier(copy.deepcopy(clip), asked, shape)
    before = answers(Classifier(clip, asked, untouched).eval(), "predictions_before.jsonl")
    set_seed(settings.seed)
    classifier = Classifier(clip, asked, shape)
    start = checkpoint.trained_state(classifier)
    found = train(classifier, samples, settings, held) | shared
    classifier.eval()
    alpha = settings.wise_alpha
    if isinstance(alpha, str):
        assert held is not None
        if distributed.is_main():
            found["wise"] = wise_choice(
                start, HeldOutSet.of(classifier, held, settings.eval_batch_size, settings.cache_gib)
            )
            alpha = float(found["wise"]["alpha"])
        (alpha,) = broadcast_object_list([alpha])
    classifier.interpolate(start, alpha)
    if distributed.is_main():
        about = {"name": settings.data, "split": settings.data_split, "n": found["n"],
                 "options": settings.data_options, "fingerprint": same["data"]}  # fmt: skip
        save(recipe, settings, classifier, sha, about)
    distributed.wait_for_everyone()
    after = answers(classifier, "predictions.jsonl")
    if not distributed.is_main():
        return
    found["peak_rss_gib"] = round(memory.peak_rss_gib(), 3)
    evaluation.conclude(
        run_dir, (settings.base, settings.output_dir), before, after, benchmark,
        [asked],
        faces, found, baseline,
    )  # fmt: skip


def wise_choice(start: Mapping[str, Any], held: HeldOutSet) -> dict[str, Any]:
    """{"alpha": that with the best UAR on held-out rows, of equals the smallest, which is nearest
    to the base; "uar": {alpha: UAR}}. The classifier is left as it was."""
    classifier = held.classifier
    tuned = checkpoint.trained_state(classifier)
    scores = {}
    for alpha in ALPHAS:
        classifier.interpolate(dict(start), alpha)
        scores[alpha] = held.uar()
        checkpoint.load_trained(classifier, tuned, "memory")
        classifier.reset_cache()
    best = max(scores, key=lambda alpha: (scores[alpha], -alpha))
    return {"alpha": best, "uar": {f"{a:g}": round(s, 4) for a, s in scores.items()}}


def save(
    recipe: str, settings: Settings, classifier: Classifier, sha: str, about: Mapping[str, Any]
) -> None:
    """Write the trained weights, the texts and, last, the manifest of a run."""
    from safetensors.torch import save as to_bytes

    run_dir, views = Path(settings.output_dir), crops.parse_views(settings.crop)
    state = {
        name: tensor.contiguous() for name, tensor in checkpoint.trained_state(classifier).items()
    }
    atomic_write(run_dir / WEIGHTS, to_bytes(state))
    manifest.save_prompts([classifier.texts], run_dir)
    manifest.Manifest(
        recipe=recipe,
        family=manifest.CLIP,
        base={"id": settings.base, "sha": sha},
        adapter=True,
        trainable={"image": settings.image, "text": settings.text, "head": settings.head},
        prompts=[manifest.prompt_entry(classifier.texts)],
        au_set=[],
        image={"size": classifier.clip.side},
        processor={},
        weights=manifest.weights_shas(run_dir),
        max_length=classifier.clip.tokenizer.context_length,
        generation={},
        data=dict(about),
        seed=settings.seed,
        limits=settings.limits or manifest.default_limitations(settings.data),
        crop=crops.views_as_dict(views),
        frames=settings.frames,
        faces=crops.default_faces(views, data.shows_faces(settings.data)),
        clip_classifier=dataclasses.asdict(classifier.shape),
    ).save(run_dir)


def export(run_dir: str | Path, out: str | Path) -> None:
    """Write a run's towers, LoRA folded in, as the new folder `out` that open_clip opens
    ("local-dir:OUT"). Raises UserError if it exists, and for a run whose answers need more than
    the towers."""
    if Path(out).exists():
        raise UserError(f"{out} exists: give the name of a new folder")
    clip_run = ClipModel.load(run_dir)
    shape = clip_run.classifier.shape
    beyond = {
        "image: adapters": shape.image == "adapters",
        "head: linear": shape.head == "linear", "text: prompts": shape.text == "prompts",
        "several views": shape.views > 1, "frames": shape.frames > 1,
        "affect": shape.affect != "none", "several labels": clip_run.prompt.several,
    }  # fmt: skip
    if more := [name for name, there in beyond.items() if there]:
        raise UserError(
            f"{run_dir} answers with more than the towers ({', '.join(more)}), which open_clip has "
            "no place for: load it with vlmface.infer.clip.ClipModel"
        )
    model.save_clip(clip_run.classifier.clip, out)
