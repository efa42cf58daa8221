"""A random checkpoint of each model type, in a folder, with a tokenizer trained on a corpus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vlmface.families import tiny, tiny_paligemma, tiny_qwen_vl, tiny_smolvlm

BUILDERS: dict[str, Callable[..., Any]] = {
    "llava": tiny.build_llava,
    "paligemma": tiny_paligemma.build,
    "qwen2_5_vl": tiny_qwen_vl.build_qwen_vl,
    "qwen3_vl": partial(tiny_qwen_vl.build_qwen_vl, model_type="qwen3_vl"),
    "smolvlm": tiny_smolvlm.build_smolvlm,
    "idefics3": partial(tiny_smolvlm.build_smolvlm, model_type="idefics3"),
}
