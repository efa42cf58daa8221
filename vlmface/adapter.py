"""Attach a run's LoRA adapter to its base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmface.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def attach(
    model: Any, run: str | Path, *, trainable: bool = False, dropout: float | None = None
) -> Any:
    """The model with the adapter in the folder `run`.

    Only the folder's files are read: peft would download missing files from the model hub, and
    unpickle weights that are not safetensors.

    Args:
        model: The base model.
        run: A run folder, checked by `manifest.check_weights`.
        trainable: Whether the adapter is trained further.
        dropout: In front of the adapters while they are trained; None: as stored.

    Returns:
        A PeftModel, in evaluation mode unless it is trainable.

    Raises:
        UserError: A file is missing or damaged, or the adapter is not a LoRA for this model.
    """
    import torch
    from peft import LoraConfig, PeftModel

    run = Path(run)
    read_config(run)
    try:
        config = LoraConfig.from_pretrained(str(run), local_files_only=True)
        if dropout is not None:
            config.lora_dropout = dropout
        adapted = PeftModel.from_pretrained(
            model, str(run), is_trainable=trainable, config=config, local_files_only=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # peft and torch raise many unrelated kinds for a foreign adapter
        raise UserError(
            f"the adapter in {run} does not fit its base ({type(error).__name__}: {error}): "
            "restore the run's files, or train again"
        ) from error
    return adapted if trainable else adapted.eval()


def restore_weights(model: Any, run: str | Path) -> None:
    """Give an attached adapter the weights of its folder again, in the precision of the model.

    Over a quantised base TRL rounds the weights of an adapter to bfloat16.

    Args:
        model: Of `attach`.
        run: The same folder.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(Path(run) / WEIGHTS))


def read_config(run: str | Path) -> dict[str, Any]:
    """The configuration of the LoRA adapter in a folder.

    Args:
        run: The folder.

    Returns:
        The content of adapter_config.json, of which r, lora_alpha and lora_dropout are numbers.

    Raises:
        UserError: A file is missing, or is not of a LoRA adapter.
    """
    run = Path(run)
    for name in (CONFIG, WEIGHTS):
        if not (run / name).is_file():
            raise UserError(f"{run} lacks {name}: restore it, or train again")
    try:
        config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {run / CONFIG}: {error}; restore it") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{run / CONFIG} is not the configuration of a LoRA adapter: restore it")
    if config.get("megatron_config"):  # peft imports the module that it names
        raise UserError(f"{run / CONFIG} has a megatron_config, which no recipe writes: restore it")
    for name in ("r", "lora_alpha", "lora_dropout"):
        if type(config.get(name)) not in (int, float):
            raise UserError(f"{run / CONFIG}: {name} is {config.get(name)!r}: restore it")
    return config
