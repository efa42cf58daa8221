"""The weights of a module that are trained: with what it was built from they are the model."""

from __future__ import annotations

import torch
from torch import nn

from vlmface.errors import UserError


def names(module: nn.Module) -> list[str]:
    """Their names."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """{name: weight}, copied to the CPU."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_trained(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """The inverse of `trained_state`. Raises UserError if names or shapes differ."""
    parameters = dict(module.named_parameters())
    expected = set(names(module))
    if expected != set(state):
        raise UserError(
            f"the trained weights in {where} do not fit the model: missing "
            f"{sorted(expected - set(state)) or 'none'}, unknown "
            f"{sorted(set(state) - expected) or 'none'}; restore the folder, or train again"
        )
    for name, weight in state.items():
        if parameters[name].shape != weight.shape:
            raise UserError(
                f"the trained weights in {where} do not fit the model: {name} is "
                f"{tuple(weight.shape)}, expected {tuple(parameters[name].shape)}"
            )
    module.load_state_dict(state, strict=False)
