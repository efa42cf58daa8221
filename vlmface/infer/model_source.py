"""Where a vision-language model is loaded from: a run folder or a base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmface import families, manifest, prompts
from vlmface.aus.evidence import check_trained
from vlmface.errors import UserError


@dataclass(frozen=True)
class ModelSource:
    """What a model is loaded from: the folders, the family, and the prompts."""

    base: Path
    processor_dir: Path
    family: str
    prompt: prompts.Prompt
    prompts: list[prompts.Prompt]
    manifest: manifest.Manifest | None = None


def _of_run(run: str | Path, prompt: str | Path | prompts.Prompt | None) -> ModelSource:
    run_manifest, run_prompts = manifest.load(run)
    check_trained(run_manifest.evidence, run_prompts, run)
    manifest.check_weights(run_manifest, run)
    active_prompt = run_prompts[0]
    if prompt is not None:
        active_prompt = manifest.select_prompt(run_prompts, prompt, run)
    run_dir = Path(run)
    base = manifest.resolve_base(run_manifest, run_dir) if run_manifest.adapter else run_dir
    return ModelSource(base, run_dir, run_manifest.family, active_prompt, run_prompts, run_manifest)


def _of_base(model: str | Path, prompt: str | Path | prompts.Prompt | None) -> ModelSource:
    if prompt is None:
        why = (
            f"it has no {manifest.FILENAME}" if Path(model).is_dir() else "there is no such folder"
        )
        raise UserError(
            f"{model} is not a vlmface run ({why}): choose a prompt with "
            "--prompt, or give the folder of a run"
        )
    loaded = prompt if isinstance(prompt, prompts.Prompt) else prompts.load(prompt)
    base = manifest.resolve(str(model))
    return ModelSource(base, base, families.family_of(base), loaded, [loaded])


def find_source(
    run_or_model: str | Path, prompt: str | Path | prompts.Prompt | None
) -> ModelSource:
    """What a run or a base model is loaded from.

    Args:
        run_or_model: A run folder, or a base model (id, folder or "vlmface-tiny").
        prompt: One of the run's prompts, by default its first; a base model needs one.

    Raises:
        UserError: The run does not match its manifest, or its base model is missing.
    """
    if manifest.is_run(run_or_model):
        return _of_run(run_or_model, prompt)
    return _of_base(run_or_model, prompt)
