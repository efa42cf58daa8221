"""What the scripts in this folder share: options, and the form of their results."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parser(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """--repeats, --small (everything as small as it can be, to try the script) and --json."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--repeats", type=int, default=repeats)
    options.add_argument("--small", action="store_true", help="try the script: no figure counts")
    options.add_argument("--json", type=Path)
    return options


def write(
    path: Path | None, name: str, *, ratio: Mapping[str, float], runs: Any, equal: Any
) -> None:
    """Write {"name", "ratio", "runs", "equal", "machine"}; nothing without a path. A ratio above 1
    means that ours is better."""
    if path is None:
        return
    machine = {"cpus": os.cpu_count(), "processor": platform.machine()}
    result = {"name": name, "ratio": ratio, "runs": runs, "equal": equal, "machine": machine}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
