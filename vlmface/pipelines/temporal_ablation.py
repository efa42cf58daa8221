"""Is time needed? A model of clips beside the same classifier that is shown less of each clip.

All are trained in the same way on what a frozen image tower sees of the same clips:

    clip       all frames, with a transformer over them
    mean       the mean of all frames' features, as if it were one frame
    frame k    frame k alone, for each k; the best k is chosen on validation clips

Each keeps its best epoch on validation clips; all are compared on the same test clips.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from vlmface import benchmarks, data, label_texts, run_dir
from vlmface.clip import model
from vlmface.clip.classifier import Classifier
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.metrics import metrics
from vlmface.metrics.shares import in_brackets
from vlmface.schema import FaceSample
from vlmface.train import checks
from vlmface.train.clip.dataset import ImageDataset, select_labelled
from vlmface.train.clip.model_selection import HeldOutSet
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import ClassifierWithLoss, RowNumbers, all_features, train_on
from vlmface.utils import config, distributed
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets

    from vlmface.clip.model import Clip

RESULT, TABLE = "temporal_ablation.json", "temporal_ablation.md"
CLIP, MEAN = "clip", "mean"


def main(argv: Sequence[str]) -> int:
    """`eval/temporal_ablation.py`."""
    distributed.check_alone("eval/temporal_ablation.py")
    usage = "Settings are those of recipes/clip_finetune.py; the model must have time: transformer."
    settings = config.load_config(Settings, argv, default="clip_temporal_tiny", usage=usage)
    _check(settings)
    checks.machine(settings)
    distributed.set_cpu_threads()
    folder = Path(settings.output_dir)
    with run_dir.open_run(settings, last=RESULT) as is_open:
        if not is_open:
            return 0
        parts, truths, identity = load(settings)
        run_dir.start_run(settings, lambda: identity)
        result = compare(settings, parts, truths)
        atomic_write(folder / TABLE, markdown_table(result))
        atomic_write(folder / RESULT, json.dumps(result, indent=2) + "\n")
        print(markdown_table(result))
    return 0


def _check(settings: Settings) -> None:
    expected = {"image_tower": "frozen", "augment": "none", "temporal": "transformer"}
    wrong = [f"{k} is {v}" for k in expected if (v := getattr(settings, k)) != expected[k]]
    if wrong or settings.num_frames < 2 or settings.num_views > 1:
        raise UserError(
            "clips are compared with their frames by image_tower: frozen, augment: none, temporal: "
            "transformer, num_frames: 2 or more, and one view; found "
            f"{', '.join(wrong) or 'others'}, num_frames {settings.num_frames}, "
            f"{settings.num_views} view(s)"
        )
    if not settings.validation_split:
        raise UserError("epochs and the best frame are chosen on validation_split: name one")
    if settings.checkpoint_selection != "best" or settings.wise_ft_alpha != 1:
        raise UserError(
            f"checkpoint_selection is {settings.checkpoint_selection} and wise_ft_alpha is "
            f"{settings.wise_ft_alpha}, but clips are compared at their best epoch, with the "
            "weights as trained: set checkpoint_selection: best and wise_ft_alpha: 1"
        )


def load(settings: Settings) -> tuple[list[Part], list[dict[str, Any]], dict[str, Any]]:
    """What a frozen image tower sees of the training, validation and test clips; of each test clip
    what metrics need to know, "id", "subject" and "truth"; and what must be the same when the run
    is resumed (`run_dir.start_run`)."""
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    texts = settings.texts
    answering.scored_prompts(benchmark, [texts])
    root = settings.benchmark_root or benchmark.root_beside(settings.dataset_root)
    views = crops.parse_views(settings.views)
    splits = ((settings.dataset_split, settings.n_train), (str(settings.validation_split), None))
    loaded = [
        data.load(settings.dataset, settings.dataset_root, split, n=n, **settings.dataset_options)
        for split, n in splits
    ]
    identity: dict[str, Any] = {"data": [data.fingerprint(rows) for rows in loaded]}
    loaded = [crop_cache.apply_views(rows, views, settings.num_frames) for rows in loaded]
    loaded.append(
        benchmarks.load_rows(benchmark, root, settings.n_eval, views, settings.num_frames)
    )
    others = {"validation": (loaded[1], settings.dataset_root), "test": (loaded[2], root)}
    checks.shared_people(loaded[0], settings.dataset_root, others)
    checks.warmup(settings, checks.steps(settings, len(select_labelled(loaded[0], texts)[0])))
    clip = model.load_clip(settings.base_model, device=distributed.device())
    identity |= {
        "test_data": data.fingerprint(loaded[-1], pictures=False),
        "base_weights": model.weights_sha(clip),
    }
    parts = [Part.from_rows(rows, clip, texts, settings) for rows in loaded]
    return parts, _truths(parts[2].rows, benchmark), identity


def compare(
    settings: Settings, parts: Sequence[Part], truths: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Train and test all models on what `load` gives: {"n", "frames", "models": {name:
    {"validation_uar", "epoch", "test": {"accuracy", "uar", "ci95"}}}, "best_frame", "differences":
    {"clip - frame k": {"accuracy": {"difference", "ci95"}, "uar"}, "clip - mean"}, "still"}.

    "still": the model of clips on clips that stand still, in their middle frame, beside the model
    of that frame: how often they say the same, and half the sum of the absolute differences of
    their probabilities, in the mean. Resumes where it was stopped. Raises UserError.
    """
    frames = settings.num_frames
    models: dict[str, Any] = {}
    shares_of: dict[str, torch.Tensor] = {}
    for name in (CLIP, MEAN, *(f"frame {k}" for k in range(frames))):
        models[name], shares_of[name] = _train_model(name, settings, parts)
    singles = [models[f"frame {k}"]["validation_uar"] for k in range(frames)]
    best = singles.index(max(singles))
    space = settings.texts.space
    rows = {name: _rows(shares, truths, space.labels) for name, shares in shares_of.items()}
    for name in rows:
        block = metrics.label_block(rows[name], space)
        models[name]["test"] = {k: block[k] for k in ("accuracy", "uar", "ci95")}
    differences = {}
    for other in (f"frame {best}", MEAN):
        changes = metrics.block_of(metrics.compare(rows[other], rows[CLIP], space, ()), space)
        assert changes is not None
        differences[f"{CLIP} - {other}"] = {k: changes[k] for k in ("accuracy", "uar")}
    middle = frames // 2
    still = _still_clips(settings, parts[2], middle, shares_of[f"frame {middle}"])
    return {
        "n": {
            name: len(part.targets)
            for name, part in zip(("train", "validation", "test"), parts, strict=True)
        },
        "frames": frames,
        "models": models,
        "best_frame": best,
        "differences": differences,
        "still": still,
    }


@dataclasses.dataclass
class Part:
    """The labelled rows of a split, their targets and affects, and `features` (n, frames, width)
    of a frozen image tower."""

    rows: datasets.Dataset | None
    targets: torch.Tensor
    affects: torch.Tensor
    features: torch.Tensor

    @classmethod
    def from_rows(
        cls, rows: datasets.Dataset, clip: Clip, texts: label_texts.LabelTexts, settings: Settings
    ) -> Part:
        rows, targets, affects, _ = select_labelled(rows, texts)
        features = all_features(clip, ImageDataset(rows, clip, 0), settings.eval_batch_size)
        return cls(rows, targets, affects, features)

    def features_for(self, name: str) -> torch.Tensor:
        """What a model is shown of the clips: (n, pictures, width)."""
        if name == CLIP:
            return self.features
        if name == MEAN:
            return self.features.mean(1, keepdim=True)
        k = int(name.rpartition(" ")[2])
        return self.features[:, k : k + 1]


def _train_model(
    name: str, settings: Settings, parts: Sequence[Part]
) -> tuple[dict[str, Any], torch.Tensor]:
    """One model: ({"validation_uar", "epoch"}, probabilities (n, labels) on the test clips)."""
    folder = _folder(settings, name)
    predictions_path = folder / "predictions.pt"
    if predictions_path.exists():  # written last
        return tuple(torch.load(predictions_path, weights_only=True))
    classifier, model_settings = _classifier(name, settings)
    run_dir.start_in_folder(folder, model_settings, {}, run_dir.RESUMABLE_CHANGES)
    train_part, held_part, test_part = parts
    module = ClassifierWithLoss(classifier, train_part.targets, train_part.affects, model_settings)
    module.features = train_part.features_for(name)
    held, test = (
        HeldOutSet(
            classifier, part.targets, settings.eval_batch_size, features=part.features_for(name)
        )
        for part in (held_part, test_part)
    )
    training = train_on(module, RowNumbers(len(train_part.targets)), model_settings, held)
    line = {"validation_uar": training["selected"]["uar"], "epoch": training["selected"]["epoch"]}
    torch.save((line, test.shares()), folder / "predictions.partial.pt")
    (folder / "predictions.partial.pt").rename(predictions_path)
    return line, test.shares()


def _folder(settings: Settings, name: str) -> Path:
    return Path(settings.output_dir) / "models" / name.replace(" ", "_")


def _classifier(name: str, settings: Settings) -> tuple[Classifier, Settings]:
    """An untrained classifier, and its own settings."""
    set_seed(settings.seed)
    model_settings = dataclasses.replace(
        settings,
        output_dir=str(_folder(settings, name)),
        checkpoint_selection="best",
        num_frames=settings.num_frames if name == CLIP else 1,
    )
    clip = model.load_clip(settings.base_model, device=distributed.device())
    return Classifier(clip, settings.texts, model_settings.shape(1)), model_settings


def _still_clips(
    settings: Settings, part: Part, middle: int, alone: torch.Tensor
) -> dict[str, float | int]:
    from vlmface.train.clip.model_selection import BEST, KeepBest

    classifier, model_settings = _classifier(CLIP, settings)
    repeated = part.features[:, middle : middle + 1].repeat(1, settings.num_frames, 1)
    held = HeldOutSet(classifier, part.targets, settings.eval_batch_size, features=repeated)
    assert (Path(model_settings.output_dir) / "checkpoints" / BEST).exists()
    KeepBest(Path(model_settings.output_dir), held).restore()
    shares = held.shares()
    return {
        "frame": middle,
        "same_label": float((shares.argmax(-1) == alone.argmax(-1)).float().mean()),
        "difference": float((shares - alone).abs().sum(-1).mean() / 2),
    }


def _truths(rows: datasets.Dataset, benchmark: Any) -> list[dict[str, Any]]:
    hidden = [c for c in ("image", "frames", "images") if c in rows.column_names]
    samples = [FaceSample.from_row(row) for row in rows.remove_columns(hidden)]
    return [
        {"id": s.id, "subject": s.subject, "truth": answering.ground_truth(s, benchmark)}
        for s in samples
    ]


def _rows(
    shares: torch.Tensor, truths: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            **true,
            "label": labels[int(row.argmax())],
            "status": "strict",
            "aus": None,
            "probabilities": None,
        }
        for true, row in zip(truths, shares, strict=True)
    ]


def markdown_table(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"Trained on {result['n']['train']} clips of {result['frames']} frames, chosen on "
        f"{result['n']['validation']}, tested on {result['n']['test']}.",
        "",
        "| Shown | Validation UAR | Test accuracy | Test UAR |",
        "|---|---|---|---|",
    ]
    for name, scores in result["models"].items():
        mark = " (best)" if name == f"frame {result['best_frame']}" else ""
        test = scores["test"]
        lines.append(
            f"| {name}{mark} | {scores['validation_uar']:.3f} | {_with(test, 'accuracy')} "
            f"| {_with(test, 'uar')} |"
        )
    lines += ["", "| Difference | Accuracy | UAR |", "|---|---|---|"]
    for name, scores in result["differences"].items():
        cells = (
            f"{scores[k]['difference']:+.3f}{in_brackets(scores[k].get('ci95'), '+.3f')}"
            for k in ("accuracy", "uar")
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    still = result["still"]
    lines += [
        "",
        f"Shown clips that stand still in frame {still['frame']}, the model of clips says what the "
        f"model of that frame says for {still['same_label']:.1%} of them; their probabilities "
        f"differ by {still['difference']:.3f} in the mean (half the sum over the labels).",
    ]
    return "\n".join(lines) + "\n"


def _with(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.3f}{in_brackets(scores['ci95'].get(name))}"
