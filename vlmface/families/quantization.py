"""Loading a base whose language model is kept in 4 bits while adapters train on top of it: QLoRA
(Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, Literal

from vlmface.errors import UserError
from vlmface.families.modules import ModulePaths, paths

Quantization = Literal["nf4"]


def options(
    quantization: Quantization | None, module_paths: ModulePaths, *, dtype: Any, device: Any
) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained`: none without `quantization`.

    The linear layers of the language model become NF4 with quantised constants, and compute in
    `dtype` (float32 if None). Tower, projector and head stay as they are: transformers would
    quantise the first two by default, and keeps the head out by itself only where nothing else is
    named.

    Args:
        quantization: "nf4", or None.
        module_paths: `Family.MODULE_PATHS`.
        dtype: The torch dtype of the layers that are not quantised.
        device: Where the model will stay.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization is {quantization}, but bitsandbytes is not installed: pip install "
            "'vlmface[qlora]', or set quantization: null"
        )
    import torch
    from transformers import BitsAndBytesConfig

    whole = [path for part in ("vision_tower", "projector") for path in paths(module_paths, part)]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype or torch.float32,
        llm_int8_skip_modules=[*(rf"(?:.*\.)?{re.escape(path)}" for path in whole), "lm_head"],
    )
    # Quantised where it will stay: the packing of a CPU is not that of a GPU.
    return {"quantization_config": config, "device_map": {"": device or "cpu"}}
