"""Load a model into this process: a vision-language model or a CLIP classifier."""

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
    """Load a run or a base model of either kind.

    Args:
        run_or_model: A run folder, or a base model.
        prompt: As in `LocalModel.load` and `ClipModel.load`.
        max_new_tokens: As in `LocalModel.load`.

    Returns:
        A ClipModel for a CLIP run or the name of a CLIP, otherwise a LocalModel.

    Raises:
        UserError: The model cannot be loaded.
    """
    from vlmface.clip import model

    if manifest.is_run(run_or_model):
        is_clip = manifest.family_of(run_or_model) == manifest.CLIP
    else:
        is_clip = model.is_clip(run_or_model)
    if is_clip:
        from vlmface.infer.clip import ClipModel

        return ClipModel.load(run_or_model, prompt=prompt)
    return LocalModel.load(run_or_model, prompt=prompt, max_new_tokens=max_new_tokens)
