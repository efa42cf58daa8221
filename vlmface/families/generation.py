"""What a checkpoint's authors would have `generate` do must not change an answer.

A published generation_config.json may hold a repetition penalty, a temperature, words that are
forbidden or forced. `generate` fills in whatever its caller leaves open from there, also beside
`do_sample=False`, so that "greedy" answers are not the likeliest tokens any more, and not those
that rollouts, label scores and a server compute.
"""

from __future__ import annotations

from typing import Any


def clear_generation_config(model: Any) -> Any:
    """Replace the model's generation config with an empty one, and return the model.

    Only the ids of the special tokens remain, as the checkpoint states them. What is saved with the
    model later is the empty one too: nothing else can apply behind another server.
    """
    from transformers import GenerationConfig

    published = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=published.bos_token_id,
        eos_token_id=published.eos_token_id,
        pad_token_id=published.pad_token_id,
    )
    return model
