"""Fine-tuning of a CLIP classifier: prepare, evaluate, train, choose, evaluate, report."""

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
from vlmface.clip.classifier import Classifier, ClassifierConfig
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer.clip import WEIGHTS, ClipModel
from vlmface.pipelines import steps, validation
from vlmface.run_dir import start_run
from vlmface.train import checks, task_sampling
from vlmface.train.clip.dataset import select_labelled
from vlmface.train.clip.model_selection import HeldOutSet
from vlmface.train.clip.trainer import train
from vlmface.utils import distributed, extras
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets

    from vlmface.train.clip.settings import Settings

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # that "auto" chooses among


def run(recipe: str, settings: Settings) -> int:
    """Train a classifier in the folder `settings.output_dir`, or resume there.

    Args:
        recipe: Its name, for the manifest.
        settings: Of the run.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    extras.require("open_clip")
    settings.check()  # a run of an ablation has other views than the settings that were parsed
    return steps.run_in_folder(settings, lambda: train_and_evaluate(recipe, settings))


def train_and_evaluate(recipe: str, settings: Settings) -> None:
    """What `run` does in an opened folder."""
    run_dir = Path(settings.output_dir)
    evaluation, rows = prepare(settings)
    clip = model.load_clip(settings.base_model, device=distributed.device())
    sha = model.weights_sha(clip)
    (texts,) = evaluation.prompts
    started = start_run(settings, lambda: identity(rows, texts, sha))

    def predict(classifier: Classifier, name: str) -> list[dict[str, Any]]:
        return answering.predict_with(
            ClipModel(classifier, crops.parse_views(settings.views)),
            run_dir / name,
            evaluation.rows,
            evaluation.benchmark,
            batch_size=settings.eval_batch_size,
        )

    shape = settings.shape(settings.num_views)
    Classifier(copy.deepcopy(clip), texts, shape)  # raises, before the first evaluation
    untrained = Classifier(clip, texts, untrained_shape(shape))
    before = predict(untrained.eval(), "predictions_before.jsonl")
    set_seed(settings.seed)
    classifier = Classifier(clip, texts, shape)
    start = checkpoint.trained_state(classifier)
    scorer = validation.classifier_scorer(settings, evaluation.benchmark, texts)
    result = train(classifier, rows.training, settings, rows.validation, scorer)
    result |= rows.shared_people
    classifier.eval()
    interpolate(classifier, start, settings, rows.validation, result)
    if distributed.is_main():
        about = steps.describe_data(settings, result["n"], started["data"])
        save(recipe, settings, classifier, sha, about)
    distributed.wait_for_everyone()
    after = predict(classifier, "predictions.jsonl")
    if distributed.is_main():
        models = (settings.base_model, settings.output_dir)
        evaluation.write_report(run_dir, models, (before, after), result)


# --- rows -----------------------------------------------------------------------------------------


def prepare(settings: Settings) -> tuple[steps.Evaluation, steps.Rows]:
    """What is evaluated, and all rows of the run.

    Raises:
        UserError: The benchmark does not score the labels, the data cannot be read, or lack what is
            trained on.
    """
    texts = settings.texts
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    answering.scored_prompts(benchmark, [texts])
    baseline = benchmarks.load_baseline(benchmark)
    task_sampling.check_balance(settings.balance_by, [texts])
    views = crops.parse_views(settings.views)
    rows = steps.load_rows(settings, benchmark, views, settings.num_frames)
    balanced = task_sampling.balanced_rows(rows.training, texts, settings.balance_by, settings.seed)
    rows = dataclasses.replace(rows, training=balanced)
    labelled_rows, _, affects, _ = select_labelled(rows.training, texts, settings.soft_labels)
    checks.run_length(settings, checks.steps(settings, len(labelled_rows)))
    if settings.affect != "none" and affects.isnan().all():
        raise UserError(
            f"affect is {settings.affect}, but no row of {settings.dataset} has valence or "
            "arousal: set affect: none, or use data that has"
        )
    return steps.Evaluation(benchmark, baseline, [texts], rows.test), rows


def identity(rows: steps.Rows, texts: label_texts.LabelTexts, sha: str) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its settings (`run_dir.start_run`)."""
    return {
        "data": data.fingerprint(rows.loaded),
        "rows": len(rows.training),
        **validation.identity(rows.validation),
        "test_data": data.fingerprint(rows.test, pictures=False),
        "prompts": [f"{texts.id} {texts.sha} {texts.space.sha}"],
        "base_weights": sha,
    }


# --- the model ------------------------------------------------------------------------------------


def untrained_shape(shape: ClassifierConfig) -> ClassifierConfig:
    """The classifier that a base is without training: the similarity of image and texts."""
    return dataclasses.replace(
        shape,
        image_tower="frozen",
        text_tower="frozen",
        head="text",
        affect="none",
        negative_weight=0.0,
        temporal="none" if shape.num_frames == 1 else "mean",
    )


def interpolate(
    classifier: Classifier,
    start: dict[str, Any],
    settings: Settings,
    held_out: datasets.Dataset | None,
    result: dict[str, Any],
) -> None:
    """Interpolate between the weights before and after training, by WiSE-FT.

    Args:
        classifier: After training; it is changed.
        start: Its weights before training.
        settings: Of the run; wise_ft_alpha is the weight of the trained ones, or "auto".
        held_out: The rows that "auto" is chosen on.
        result: For metrics.json: gets what "auto" has chosen.
    """
    alpha = settings.wise_ft_alpha
    if isinstance(alpha, str):
        assert held_out is not None
        if distributed.is_main():
            held = HeldOutSet.from_rows(
                classifier, held_out, settings.eval_batch_size, settings.cache_gib
            )
            result["wise"] = wise_choice(start, held)
            alpha = float(result["wise"]["alpha"])
        (alpha,) = broadcast_object_list([alpha])
    classifier.interpolate(start, alpha)


def wise_choice(start: Mapping[str, Any], held: HeldOutSet) -> dict[str, Any]:
    """Choose the weight of the trained weights on held-out rows.

    Args:
        start: The weights before training.
        held: The held-out rows, and the classifier, which is left as it was.

    Returns:
        {"alpha": that with the best UAR, the smallest of several; "uar": {alpha: UAR}}.
    """
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

    run_dir, views = Path(settings.output_dir), crops.parse_views(settings.views)
    state = {
        name: tensor.contiguous() for name, tensor in checkpoint.trained_state(classifier).items()
    }
    atomic_write(run_dir / WEIGHTS, to_bytes(state))
    manifest.save_prompts([classifier.texts], run_dir)
    manifest.Manifest(
        recipe=recipe,
        family=manifest.CLIP,
        base_model={"id": settings.base_model, "sha": sha},
        adapter=True,
        trainable={
            "image_tower": settings.image_tower,
            "text_tower": settings.text_tower,
            "head": settings.head,
        },
        prompts=[manifest.prompt_entry(classifier.texts)],
        au_set=[],
        image={"size": classifier.clip.side},
        processor={},
        weights=manifest.weights_shas(run_dir),
        max_length=classifier.clip.tokenizer.context_length,
        generation={},
        dataset=dict(about),
        seed=settings.seed,
        limitations=settings.limitations or manifest.default_limitations(settings.dataset),
        views=crops.views_as_dicts(views),
        num_frames=settings.num_frames,
        faces=crops.default_faces(views, data.shows_faces(settings.dataset)),
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
        "image_tower: adapters": shape.image_tower == "adapters",
        "head: linear": shape.head == "linear",
        "text_tower: prompts": shape.text_tower == "prompts",
        "several views": shape.num_views > 1,
        "several frames": shape.num_frames > 1,
        "affect": shape.affect != "none",
        "several labels": clip_run.prompt.multi_label,
    }
    if more := [name for name, is_used in beyond.items() if is_used]:
        raise UserError(
            f"{run_dir} answers with more than the towers ({', '.join(more)}), which open_clip has "
            "no place for: load it with vlmface.infer.clip.ClipModel"
        )
    model.save_clip(clip_run.classifier.clip, out)
