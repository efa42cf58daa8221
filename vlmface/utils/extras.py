"""Optional packages, and which extra of vlmface installs each."""

from __future__ import annotations

import importlib.util

from vlmface.errors import UserError

# {package as it is imported: extra in pyproject.toml}
EXTRAS = {
    "trl": "train",
    "open_clip": "clip",
    "embreex": "synth",
    "mediapipe": "detect",
    "av": "video",
    "num2words": "smolvlm",
    "deepspeed": "deepspeed",
    "bitsandbytes": "qlora",
    "liger_kernel": "liger",
    "fastapi": "gateway",
    "uvicorn": "gateway",
    "prometheus_client": "gateway",
    "gradio": "demo",
}


def require(package: str) -> None:
    """Refuse a run before its data are read, where a package is used only after that.

    Args:
        package: As it is imported, one of EXTRAS.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise _not_installed(package)


def missing_extra(error: ImportError) -> UserError | None:
    """What to install, for an import that failed.

    Args:
        error: Of the import.

    Returns:
        The error to print; None if no extra contains the package.
    """
    package = (error.name or "").partition(".")[0]
    return _not_installed(package) if package in EXTRAS else None


def _not_installed(package: str) -> UserError:
    return UserError(
        f"this needs the package {package}, which is not installed: "
        f"pip install 'vlmface[{EXTRAS[package]}]'"
    )
