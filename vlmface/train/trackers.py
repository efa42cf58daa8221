"""Trackers of training metrics: TensorBoard, Trackio, Weights & Biases, and others of transformers.

They receive the numbers of log.jsonl and the configuration of the trainer, and never an image. All
of them write to this machine unless the user's own environment says otherwise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmface import run_dir as run_dirs
from vlmface.errors import UserError, did_you_mean
from vlmface.utils import distributed

PROJECT = "vlmface"
EXTRAS = ("tensorboard", "trackio", "wandb")  # of vlmface, with the same name as the package


def check(names: list[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Args:
        names: Of `RunSettings.trackers`.

    Raises:
        UserError: Names the tracker and how to install it.
    """
    for name in names:
        if name in EXTRAS:
            is_installed, package = importlib.util.find_spec(name) is not None, f"vlmface[{name}]"
        else:
            is_installed, package = _is_other_installed(name), name
        if not is_installed:
            raise UserError(
                f"report_to is {name}, which is not installed: pip install '{package}', or set "
                "report_to: none"
            )


def _is_other_installed(name: str) -> bool:
    """Whether another tracker of transformers is installed. Raises UserError if there is none of
    this name."""
    from transformers.integrations import integration_utils

    tracker_names = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    if name not in tracker_names:
        raise UserError(
            f"report_to is {name!r}, but there is no such tracker"
            f"{did_you_mean(name, tracker_names)}; trackers: none, {', '.join(tracker_names)}"
        )
    return name == "flyte" or name in integration_utils.get_available_reporting_integrations()


def arguments(settings: Any) -> dict[str, Any]:
    """The arguments of transformers' trainers about trackers. No Space of the hub is created.

    Args:
        settings: With the fields of `RunSettings`.
    """
    folder = Path(settings.output_dir)
    return {
        "report_to": settings.trackers or "none",
        "run_name": f"{folder.resolve().name} {run_dirs.start_time(folder)}",
        "project": PROJECT,
        "trackio_static_space_id": False,
    }


@contextlib.contextmanager
def environment(settings: Any) -> Iterator[None]:
    """The environment of a training that reports to trackers, which is restored after it. Variables
    that the user has set stay. Prints where each tracker can be watched.

    Args:
        settings: With the fields of `RunSettings`.
    """
    folder = Path(settings.output_dir)
    logs = folder / "tensorboard"
    variables = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(logs)},
        "wandb": {"WANDB_MODE": "offline", "WANDB_PROJECT": PROJECT, "WANDB_DIR": str(folder)},
    }
    wanted = {k: v for name in settings.trackers for k, v in variables.get(name, {}).items()}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    if distributed.is_main():
        _print_where(settings.trackers)
    try:
        yield
    finally:
        if "wandb" in settings.trackers and (wandb := sys.modules.get("wandb")) is not None:
            wandb.finish()
        for name in added:
            os.environ.pop(name, None)


def _print_where(names: list[str]) -> None:
    """Print the command that shows each tracker's curves."""
    if "trackio" in names:
        print(f"trackio: watch this training with `trackio show --project {PROJECT}`")
    if "tensorboard" in names:
        logs = os.environ["TENSORBOARD_LOGGING_DIR"]
        print(f"tensorboard: watch this training with `tensorboard --logdir {logs}`")
    if "wandb" in names and os.environ["WANDB_MODE"] == "offline":
        print(
            f"wandb: offline; `wandb sync {os.environ['WANDB_DIR']}/wandb/offline-run-*` uploads "
            "the curves, WANDB_MODE=online sends them while the model trains"
        )
