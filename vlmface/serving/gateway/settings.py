"""What whoever runs the gateway may set."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Annotated

from vlmface.errors import UserError
from vlmface.utils.ranges import Checked, Count, Positive, Range

SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Settings(Checked):
    """`keys`: clients must send one of these; none: anybody may ask. `rate`: requests a minute and
    key, or without keys and address; None: any number. `max_mb`: of a request's body.
    `max_megapixels` and `max_faces`: of one picture. `max_in_flight`: requests that are answered at
    once; others are told to come back. `body_timeout_s`: in which a body must have arrived,
    `answer_timeout_s`: in which it must be answered, `drain_s`: in which all must be answered that
    is at work when the gateway is told to stop."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    rate: Annotated[float, Range(min=1)] | None = None
    max_mb: Positive = 10
    max_megapixels: Positive = 24
    max_faces: Count = 10
    max_in_flight: Count = 64
    body_timeout_s: Positive = 10
    answer_timeout_s: Positive = 120
    drain_s: Positive = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(len(key) < SHORTEST_KEY for key in self.keys):
            raise UserError(
                f"a client's key is shorter than {SHORTEST_KEY} characters: make one with "
                '`python -c "import secrets; print(secrets.token_urlsafe())"`'
            )

    @property
    def max_bytes(self) -> int:
        return int(self.max_mb * 1_000_000)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)

    @property
    def max_side(self) -> int:
        """Pixels. A picture that is taken whole is laid on a square, so that a long strip of few
        pixels would become a picture of very many."""
        return 2 * math.isqrt(self.max_pixels)


def keys_of(name: str | None) -> tuple[str, ...]:
    """The keys in the environment variable `name`, separated by commas or white space. Raises
    UserError if there are none."""
    if name is None:
        return ()
    keys = tuple(dict.fromkeys(re.findall(r"[^\s,]+", os.environ.get(name, ""))))
    if not keys:
        raise UserError(
            f"the environment variable {name} is not set: put the keys of your clients into it, "
            "separated by commas, or leave out --client_keys_env to let anybody ask"
        )
    return keys
