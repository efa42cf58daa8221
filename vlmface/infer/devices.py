"""Where a model runs, and with which numbers."""

from __future__ import annotations

from typing import Any


def device_and_dtype(device: str | None, dtype: Any) -> tuple[str, Any]:
    """The device and the type of the weights, by default the GPU in bfloat16 if there is one, and
    else the CPU in float32.

    Args:
        device: A torch device; None: the default.
        dtype: A torch dtype; None: the default of the device.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
