"""Noise from tiles that are computed once a process: fast at many points."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SIZE = 256  # pixels of a tile's side, which repeats


@lru_cache(maxsize=8)
def tile(roughness: float, seed: int = 0) -> np.ndarray:
    """A tile (SIZE, SIZE) of noise, mean 0, standard deviation 1: the amplitude falls with the
    frequency to the power of `roughness` (0: white)."""
    rng = np.random.default_rng([41, seed])
    spectrum = np.fft.rfft2(rng.normal(size=(SIZE, SIZE)))
    y, x = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]
    frequency = np.hypot(x, y)
    frequency[0, 0] = 1
    spectrum *= frequency**-roughness
    spectrum[0, 0] = 0
    values = np.fft.irfft2(spectrum, (SIZE, SIZE))
    return (values / values.std()).astype(np.float32)


def at(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The values (n,) at places u, v (n,) in pixels of the tile, not interpolated."""
    return tile[v.astype(np.int32) & (SIZE - 1), u.astype(np.int32) & (SIZE - 1)]


def unrolled(template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places u, v (n,) in dm of points (n, 3) on the skin, rolled off from a cylinder."""
    around = np.arctan2(template[:, 0], template[:, 2] - 0.35)
    return around * np.float32(0.9) + 8, template[:, 1]
