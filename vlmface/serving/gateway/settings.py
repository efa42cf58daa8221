"""The limits of a gateway."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Annotated

from vlmface.errors import UserError
from vlmface.utils.ranges import Checked, Count, Positive, Range

MIN_KEY_LENGTH = 16  # characters


@dataclass(frozen=True)
class Settings(Checked):
    """What the operator of a gateway can configure.

    Attributes:
        keys: Clients must send one of these; without keys, requests are accepted from anyone.
        rate: Requests a minute for each key, or without keys for each address; None: unlimited.
        max_mb: Size of a request's body.
        max_megapixels: Size of a picture.
        max_faces: Faces of a picture.
        max_in_flight: Requests that are answered at once; others are rejected.
        body_timeout_s: Seconds for a body to arrive.
        answer_timeout_s: Seconds for a request to be answered.
        drain_s: Seconds for the requests in flight to finish at shutdown.
    """

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
        if any(len(key) < MIN_KEY_LENGTH for key in self.keys):
            raise UserError(
                f"a client's key is shorter than {MIN_KEY_LENGTH} characters: make one with "
                '`python -c "import secrets; print(secrets.token_urlsafe())"`'
            )

    @property
    def max_bytes(self) -> int:
        """Bytes of a body."""
        return int(self.max_mb * 1_000_000)

    @property
    def max_pixels(self) -> int:
        """Pixels of a picture."""
        return int(self.max_megapixels * 1_000_000)

    @property
    def max_side(self) -> int:
        """Pixels. A whole picture is padded to a square, so a long strip of few pixels would
        become a picture of very many."""
        return 2 * math.isqrt(self.max_pixels)


def keys_from_env(name: str | None) -> tuple[str, ...]:
    """The keys in an environment variable, separated by commas or white space.

    Args:
        name: The variable; None: no keys are required.

    Returns:
        The keys without duplicates.

    Raises:
        UserError: The variable contains no key.
    """
    if name is None:
        return ()
    keys = tuple(dict.fromkeys(re.findall(r"[^\s,]+", os.environ.get(name, ""))))
    if not keys:
        raise UserError(
            f"the environment variable {name} is not set: put the keys of your clients into it, "
            "separated by commas, or leave out --client-keys-env to accept requests from anyone"
        )
    return keys
