"""What the modules of commands share."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from vlmface.utils.config import ArgumentParser

Commands: TypeAlias = "argparse._SubParsersAction[ArgumentParser]"
