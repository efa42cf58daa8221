"""Memory of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_rss_gib() -> float:
    """The peak memory of this process, GiB."""
    # Linux counts the parent's memory at the start in ru_maxrss, but not in its own VmHWM.
    if (status := Path("/proc/self/status")).exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
