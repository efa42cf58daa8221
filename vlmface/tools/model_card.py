"""The model card of a merged checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError
from vlmface.metrics.metric import METRICS, of_kind, scored_blocks
from vlmface.utils import html

if TYPE_CHECKING:
    from vlmface.manifest import Manifest
    from vlmface.prompts import Prompt

_FORMS = {
    "label": "names the label",
    "think_answer": "reasons, then names the label",
    "three_part": "observes, interprets, then names the label",
    "labels": "lists the labels that apply",
    "think_labels": "reasons, then lists the labels that apply",
}


@dataclass(frozen=True)
class Subject:
    """What the card describes.

    Attributes:
        manifest: Of the merged checkpoint.
        prompts: Of the model.
        base: The folder of the base model.
        scores: From `read_scores`.
    """

    manifest: Manifest
    prompts: Sequence[Prompt]
    base: Path
    scores: Mapping[str, Any]


def render(subject: Subject, *, repo: str, license: str | None, values: Mapping[str, Any]) -> str:
    """Render README.md: the hub's metadata, then the text.

    Args:
        subject: What the card describes.
        repo: The hub id for the examples.
        license: The licence id; by default what base and data allow.
        values: "check", "hashes", "adapter_sha" and "quantization" of the merge.
    """
    run_manifest, scores = subject.manifest, subject.scores
    after, before = scores.get("after", scores), scores.get("before", {})
    results = _results(after, before)
    source = _source(run_manifest)
    licence_id, terms = _licence(subject.base, source, license)
    base_id = run_manifest.base_model["id"]
    hub_id = base_id if base_id.count("/") == 1 else None
    metadata = _metadata(run_manifest, licence_id, hub_id, repo, after, results)
    return html.render(
        "model_card.md.j2",
        metadata=metadata.strip(),
        name=repo.rpartition("/")[2],
        repo=repo,
        family=run_manifest.family,
        prompts=[
            {
                "id": p.id,
                "sha": p.sha,
                "format": _FORMS[p.format],
                "space": p.space.id,
                "space_sha": p.space.sha,
                "labels": p.space.candidates,
            }
            for p in subject.prompts
        ],
        base_name=base_id,
        base_link=f"(https://huggingface.co/{hub_id})" if hub_id else "(#how-it-was-checked)",
        manifest=run_manifest,
        scores=after or None,
        has_before=bool(before),
        results=results,
        data=source,
        trainable=_training_sentence(run_manifest.trainable, values["quantization"]),
        licence=terms,
        check=values["check"],
        hashes=values["hashes"],
        adapter_sha=values["adapter_sha"],
    )


def read_scores(run: Path) -> dict[str, Any]:
    """Read a run's metrics.json.

    Args:
        run: The folder of the run.

    Returns:
        Its content, {} if the file does not exist.

    Raises:
        UserError: The file is damaged.
    """
    path = run / "metrics.json"
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: restore it, or remove it")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path}: {error}; restore it, or remove it to merge without results"
        ) from error
    try:
        after = scores.get("after", scores)
        for row in _results(after, scores.get("before", {})):
            for value in (row["value"], *(row["ci"] or (0, 0)), row["before"] or 0):
                f"{value:.3f}"
        f"{after['benchmark']} {after['n']:,}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not have the form that recipes write ({type(error).__name__}: {error}): "
            "restore it, or remove it to merge without results"
        ) from error
    return dict(scores)


def _training_sentence(trainable: Mapping[str, str], quantization: str | None) -> str:
    names = {
        "vision_tower": "vision tower",
        "projector": "projector",
        "language_model": "language model",
    }
    words = {"frozen": "frozen", "lora": "adapted with LoRA", "full": "fully trained"}
    text = ", ".join(f"{names[part]} {words[mode]}" for part, mode in trainable.items())
    if quantization:
        text += (
            f"; the base was quantised to {quantization} in training, and the original is merged"
        )
    return text[:1].upper() + text[1:]


def _results(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The built-in metrics of a metrics.json that tables show, as rows {"name", "type" on the hub,
    "value", "ci", "before"}."""
    earlier = {(block.kind, block.title): block for block in scored_blocks(before)}
    rows: list[dict[str, Any]] = []
    for block in scored_blocks(after):
        old = earlier.get((block.kind, block.title))
        for metric in of_kind(METRICS.built_in.values(), block.kind):
            value = block.get(metric)
            if metric.in_tables and value is not None:
                rows.append(
                    {
                        "name": f"{block.title} {metric.title}",
                        "type": metric.hub_type or metric.name,
                        "value": value,
                        "before": old and old.get(metric),
                        "ci": block.ci95(metric),
                    }
                )
    return rows


def _metadata(
    run_manifest: Manifest,
    license: str,
    base_model: str | None,
    repo: str,
    scores: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    """The card's YAML in the form of the hub's model card specification."""
    from huggingface_hub import EvalResult, ModelCardData

    def metric_name(row: Mapping[str, Any]) -> str:
        return row["name"] + (
            f", 95 % interval {row['ci'][0]:.3f} to {row['ci'][1]:.3f}" if row["ci"] else ""
        )

    is_other = license == "other"
    return ModelCardData(
        license=license,
        license_name="terms-of-base-model-and-training-data" if is_other else None,
        license_link="README.md" if is_other else None,
        base_model=base_model,
        pipeline_tag="image-text-to-text",
        library_name="transformers",
        tags=[
            "vlmface",
            run_manifest.family,
            "facial-expression-recognition",
            *(["facial-action-units"] if run_manifest.au_set else []),
            "merged-lora",
        ],
        datasets=[run_manifest.dataset["name"]],
        metrics=sorted({row["type"] for row in results}) or None,
        model_name=repo.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=scores["benchmark"],
                dataset_name=f"vlmface benchmark {scores['benchmark']}, {scores['n']} images",
                metric_type=row["type"],
                metric_name=metric_name(row),
                metric_value=round(row["value"], 4),
                metric_args={"ci95": [round(x, 4) for x in row["ci"]]} if row["ci"] else None,
            )
            for row in results
        ]
        or None,
    ).to_yaml()


def _source(run_manifest: Manifest) -> dict[str, Any]:
    """The training data: title, home, licence; `own`: whether vlmface rendered it."""
    from vlmface import data

    name = run_manifest.dataset["name"]
    if not data.is_built_in(name):  # a run may come from a stranger, who must not name code
        return {
            "title": f"`{name}`",
            "home": None,
            "licence": "that of its sources",
            "own": False,
            "rationales": "",
        }
    module = data.dataset_module(name)
    is_rendered = not getattr(module, "NEEDS_ROOT", True)
    return {
        "title": module.TITLE,
        "home": None if is_rendered else module.HOME,
        "licence": module.LICENCE,
        "own": is_rendered,
        "rationales": "Images, labels and rationales were generated by a program."
        if is_rendered
        else "Rationales that are not in the data set were written by rules from its labels.",
    }


def _licence(base: Path, source: Mapping[str, Any], license: str | None) -> tuple[str, str]:
    """(the hub's licence id, the sentences about it)."""
    from huggingface_hub import ModelCard

    card = base / "README.md"
    base_licence = ModelCard.load(card).data.get("license") if card.is_file() else None
    text = f"Base model: {base_licence or 'see its own page'}. Training data: {source['licence']}."
    if license is not None:
        return license, f"{text} The merged model is released under {license}."
    if base_licence and source["own"]:
        return base_licence, text
    return "other", f"{text} Both apply to every user of this model."
