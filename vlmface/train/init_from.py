"""Training that starts from the LoRA adapter of an earlier run (`init_from`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.train import adapter_settings, sft
from vlmface.train.settings import SFTSettings
from vlmface.utils import distributed
from vlmface.utils.config import default_values


def with_adapter(settings: SFTSettings) -> SFTSettings:
    """The settings with the shape of the adapter in `settings.init_from`, which is trained further
    as it is; the same settings without `init_from`.

    A settings file gives way to the adapter before (`SFTSettings.implied`).

    Args:
        settings: Of a run.

    Raises:
        UserError: The folder does not hold a LoRA adapter of the base, or a setting has another
            value than the adapter.
    """
    if settings.init_from is None:
        return settings
    folder = Path(settings.init_from)
    if folder.resolve() == Path(settings.output_dir).resolve():
        raise UserError(
            f"init_from and output_dir are both {folder}: write the new run into another folder"
        )
    base = manifest.resolve(settings.base_model)
    if manifest.is_run(folder):
        _check_run(folder, base, settings.base_model)
    values = adapter_settings.read(folder, base)
    defaults = default_values(type(settings))
    current = {name: getattr(settings, name) for name in values}
    others = {name: value for name, value in current.items() if value != defaults[name]}
    adapter_settings.refuse_others(folder, values, others)
    if distributed.is_main():
        described = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"starting from the adapter in {folder}: {described}")
    return dataclasses.replace(settings, **values)


def identity(settings: SFTSettings) -> dict[str, Any]:
    """What must be the same when a run is resumed (`run_dir.start_run`): the adapter's weights."""
    start = sft.describe_start(settings.init_from)
    return {} if start is None else {"init_weights": start["sha"]}


def _check_run(folder: Path, base: Path, base_id: str) -> None:
    """Raise UserError if the run has changed, or was trained over another base."""
    run, _ = manifest.load(folder)
    if not run.adapter:
        raise UserError(
            f"init_from is {folder}, which holds complete weights and not an adapter: set "
            "base_model to it, and init_from: null"
        )
    manifest.check_weights(run, folder)
    sha = manifest.weights_sha(base)
    if sha != run.base_model["sha"]:
        raise UserError(
            f"the adapter in {folder} belongs to the base model {run.base_model['id']} "
            f"({run.base_model['sha']}), but base_model is {base_id} ({sha}): set base_model to "
            "the former"
        )
