"""Open whatever answers in this process: a vision-language model, or a CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.infer.local import LocalModel

if TYPE_CHECKING:
    from vlmface.infer.clip import ClipModel


def load(
    run_or_model: str | Path, *, prompt: Any = None, max_new_tokens: int | None = None
) -> LocalModel | ClipModel:
    """`LocalModel.load`, or `ClipModel.load` for a run of a CLIP or the name of one. Raises
    UserError."""
    from vlmface.clip import model

    if manifest.is_run(run_or_model):
        clip = manifest.family_of(run_or_model) == manifest.CLIP
    else:
        clip = model.is_clip(run_or_model)
    if clip:
        from vlmface.infer.clip import ClipModel

        return ClipModel.load(run_or_model, prompt=prompt)
    return LocalModel.load(run_or_model, prompt=prompt, max_new_tokens=max_new_tokens)
