"""The model card of a merged checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError
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


def render(
    found: Manifest,
    quantize: str | None,
    prompts: Sequence[Prompt],
    base: Path,
    scores: Mapping[str, Any],
    repo: str,
    license: str | None,
    check: Mapping[str, Any],
    hashes: Mapping[str, str],
    adapter_sha: str,
) -> str:
    """README.md: the hub's metadata, then the text."""
    after, before = scores.get("after", scores), scores.get("before", {})
    results = _results(after, before)
    source = _source(found)
    id, terms = _licence(found, base, source, license)
    hub_id = found.base["id"] if found.base["id"].count("/") == 1 else None
    return html.render(
        "model_card.md.j2",
        metadata=_metadata(found, id, hub_id, repo, after, results).strip(),
        name=repo.rpartition("/")[2],
        repo=repo,
        family=found.family,
        prompts=[
            {
                "id": p.id,
                "sha": p.sha,
                "form": _FORMS[p.form],
                "space": p.space.id,
                "space_sha": p.space.sha,
                "labels": ", ".join(p.space.labels),
            }
            for p in prompts
        ],
        base_name=found.base["id"],
        base_link=f"(https://huggingface.co/{hub_id})" if hub_id else f"(#{'how-it-was-checked'})",
        manifest=found,
        scores=after or None,
        has_before=bool(before),
        results=results,
        data=source,
        policy=_sentence(found.policy, quantize),
        licence=terms,
        check=check,
        hashes=hashes,
        adapter_sha=adapter_sha,
    )


def read_scores(run: Path) -> dict[str, Any]:
    """The run's metrics.json, {} without one. Raises UserError."""
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
            f"{path} is not what a recipe writes ({type(error).__name__}: {error}): restore it, or "
            "remove it to merge without results"
        ) from error
    return dict(scores)


def _sentence(policy: Mapping[str, str], quantize: str | None) -> str:
    names = {"tower": "vision tower", "projector": "projector", "llm": "language model"}
    words = {"frozen": "left as it was", "lora": "adapted with LoRA", "full": "trained whole"}
    text = ", ".join(f"{names[part]} {words[how]}" for part, how in policy.items())
    if quantize:
        text += f"; the base was held in {quantize} meanwhile, and the merge is with the original"
    return text[:1].upper() + text[1:]


def _results(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers of a metrics.json: {"name", "type" on the hub, "value", "ci", "before"}
    a row."""
    rows: list[dict[str, Any]] = []

    def add(name: str, kind: str, key: str, *path: str) -> None:
        block, old = after, before
        for step in path:
            block, old = block.get(step, {}), old.get(step, {})
        if block.get(key) is not None:
            rows.append({"name": name, "type": kind, "value": block[key], "before": old.get(key),
                         "ci": block.get("ci95", {}).get(key)})  # fmt: skip

    add("emotion accuracy (WAR)", "accuracy", "accuracy", "emotion")
    add("emotion UAR", "recall", "uar", "emotion")
    add("emotion F1, macro", "f1", "f1_macro", "emotion")
    for name in after.get("attributes", {}):
        add(f"{name} accuracy", "accuracy", "accuracy", "attributes", name)
        add(f"{name} UAR", "recall", "uar", "attributes", name)
    add("AU F1, macro", "f1", "f1_macro", "au")
    add("AU F1, micro", "f1", "f1_micro", "au")
    return rows


def _metadata(
    found: Manifest,
    license: str,
    base_model: str | None,
    repo: str,
    scores: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    """The card's YAML in the form that the hub reads (its modelcard specification)."""
    from huggingface_hub import EvalResult, ModelCardData

    def shown(row: Mapping[str, Any]) -> str:
        return row["name"] + (f", 95 % interval {row['ci'][0]:.3f} to {row['ci'][1]:.3f}"
                              if row["ci"] else "")  # fmt: skip

    own = license == "other"
    return ModelCardData(
        license=license,
        license_name="terms-of-base-model-and-training-data" if own else None,
        license_link="README.md" if own else None,
        base_model=base_model,
        pipeline_tag="image-text-to-text",
        library_name="transformers",
        tags=["vlmface", found.family, "facial-expression-recognition",
              *(["facial-action-units"] if found.au_set else []), "merged-lora"],
        datasets=[found.data["name"]],
        metrics=sorted({row["type"] for row in results}) or None,
        model_name=repo.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=scores["benchmark"],
                dataset_name=f"vlmface benchmark {scores['benchmark']}, {scores['n']} images",
                metric_type=row["type"],
                metric_name=shown(row),
                metric_value=round(row["value"], 4),
                metric_args={"ci95": [round(x, 4) for x in row["ci"]]} if row["ci"] else None,
            )
            for row in results
        ] or None,
    ).to_yaml()  # fmt: skip


def _source(found: Manifest) -> dict[str, Any]:
    """What is known of the training data: title, home, licence; whether vlmface drew it itself."""
    from vlmface import data

    name = found.data["name"]
    if not data.is_built_in(name):  # a run may come from a stranger, who must not name code
        return {"title": f"`{name}`", "home": None, "licence": "that of its sources", "own": False,
                "rationales": ""}  # fmt: skip
    module = data.dataset_module(name)
    own = not getattr(module, "NEEDS_ROOT", True)
    return {
        "title": module.TITLE,
        "home": None if own else module.HOME,
        "licence": module.LICENCE,
        "own": own,
        "rationales": "Pictures, labels and rationales were made by a program." if own else
        "Rationales that the data set does not give were written by rules from its labels.",
    }  # fmt: skip


def _licence(
    found: Manifest, base: Path, source: Mapping[str, Any], asked: str | None
) -> tuple[str, str]:
    """(the hub's licence id, the sentences about it)."""
    from huggingface_hub import ModelCard

    card = base / "README.md"
    of_base = ModelCard.load(card).data.get("license") if card.is_file() else None
    text = f"Base model: {of_base or 'see its own page'}. Training data: {source['licence']}."
    if asked is not None:
        return asked, f"{text} Whoever merged the model released it under {asked}."
    if of_base and source["own"]:
        return of_base, text
    return "other", f"{text} Both bind whoever uses this model."
