"""Merges that give other weights than the adapter's."""

from __future__ import annotations

from typing import Any

import pytest


def scale_lora(model: Any, factor: float) -> None:
    """Multiply the scaling of all LoRA layers."""
    for module in model.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            scaling.update({name: value * factor for name, value in scaling.items()})


def install(patch: pytest.MonkeyPatch, fault: str, layers: tuple[int, int]) -> None:
    """Let peft merge wrongly: "no adapter", "swapped layers" of the language model, or a factor of
    the adapter ("0.5")."""
    from peft import PeftModel

    def wrong(self: Any) -> Any:
        if fault == "no adapter":
            return self.unload()
        if fault != "swapped layers":
            scale_lora(self, float(fault))
        model = self.base_model.merge_and_unload()
        if fault == "swapped layers":
            first, second = (model.model.language_model.layers[i].mlp for i in layers)
            kept = {name: tensor.clone() for name, tensor in first.state_dict().items()}
            first.load_state_dict(second.state_dict())
            second.load_state_dict(kept)
        return model

    patch.setattr(PeftModel, "merge_and_unload", wrong, raising=False)
