"""How people of version 2 wear their hair and beards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmface.synth.v2.parameters import Beard, Hair

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Ranges of what a style leaves open, as in `Hair`; `frequency` of women and of men."""

    frequency: tuple[float, float]
    top: Range
    sides: Range
    line: Range = (-0.06, 0.1)
    fringe: Range = (0.0, 0.0)
    length: Range = (0.0, 0.0)
    curl: Range = (0.0, 0.35)
    parted: float = 0.5  # how often it has a parting


STYLES: dict[str, Style] = {
    "bald": Style((0.0, 0.06), (0, 0), (0, 0)),
    "half-bald": Style((0.0, 0.0), (0.03, 0.08), (0.03, 0.13)),  # of older men, see below
    "buzz cut": Style((0.01, 0.14), (0.012, 0.03), (0.008, 0.02)),
    "crew cut": Style((0.02, 0.2), (0.05, 0.13), (0.02, 0.05)),
    "short": Style((0.08, 0.22), (0.1, 0.2), (0.04, 0.1), fringe=(0.0, 0.25)),
    "side parting": Style((0.04, 0.14), (0.12, 0.22), (0.05, 0.12), fringe=(0.0, 0.35), parted=1.0),
    "swept back": Style((0.05, 0.12), (0.1, 0.24), (0.04, 0.1), line=(0.0, 0.12), parted=0.0),
    "fringe": Style((0.1, 0.07), (0.12, 0.22), (0.07, 0.13), fringe=(0.45, 1.0), parted=0.2),
    "curly": Style(
        (0.07, 0.06), (0.16, 0.32), (0.1, 0.24), fringe=(0.0, 0.4), curl=(0.7, 1), parted=0.0
    ),
    "afro": Style((0.0, 0.0), (0.2, 0.6), (0.12, 0.5), curl=(1, 1), parted=0.0),
    "bob": Style((0.2, 0.01), (0.1, 0.18), (0.1, 0.16), fringe=(0.0, 1.0), length=(0.7, 1.2)),
    "shoulder-length": Style(
        (0.14, 0.03), (0.08, 0.17), (0.08, 0.15), fringe=(0.0, 0.8), length=(1.2, 1.8)
    ),
    "long": Style((0.2, 0.03), (0.07, 0.16), (0.07, 0.14), fringe=(0.0, 0.7), length=(1.8, 2.6)),
    "tied back": Style((0.12, 0.02), (0.03, 0.08), (0.02, 0.05), line=(0.0, 0.1), parted=0.3),
}
GREYS = {"grey": 0.65, "white": 0.35}
DARK = {"black": 0.7, "dark brown": 0.3}
ANY = {"black": 0.1, "dark brown": 0.3, "brown": 0.3, "blond": 0.22, "red": 0.08}


def draw_hair(
    rng: np.random.Generator, age: float, *, female: bool, african: bool
) -> tuple[str, Hair]:
    """(name of the style, hair) of a person."""
    shares = {name: style.frequency[0 if female else 1] for name, style in STYLES.items()}
    old = float(np.clip((age - 35) / 35, 0, 1))
    if not female:
        shares["half-bald"] = 0.28 * old
    if african:
        shares["afro"] = 0.2
        for name in ("side parting", "swept back", "fringe"):
            shares[name] *= 0.3
    values = np.array(list(shares.values()))
    name = str(rng.choice(list(shares), p=values / values.sum()))
    style = STYLES[name]

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    has_fringe = rng.random() < (1.0 if name == "fringe" else 0.55)
    fringe, parting = between(*style.fringe), between(-0.32, 0.32)
    receding = between(0, 1) * (0.15 + 0.85 * old)
    curl = between(*style.curl)
    return name, Hair(
        top=between(*style.top),
        sides=between(*style.sides),
        line=between(*style.line),
        recession=receding * 0.25 if female else receding,
        crown=name == "half-bald",
        parting=parting if rng.random() < style.parted else None,
        fringe=fringe if has_fringe else 0.0,
        sweep=between(-1, 1),
        length=between(*style.length),
        curl=max(curl, between(0.3, 1)) if african else curl,
        gloss=between(0, 1),
        seed=int(rng.integers(1 << 16)),
    )


def draw_beard(rng: np.random.Generator, age: float, *, female: bool) -> tuple[Beard | None, float]:
    """(beard or None, stubble 0..1) of a person."""
    kind, density = rng.random(), float(rng.uniform(0.35, 1.0))
    length, shadow = float(rng.uniform(0.02, 0.09)), float(rng.uniform(0.1, 1.0))
    long = float(rng.uniform(0.06, 0.22))
    if female or age < 18:
        return None, 0.0
    if kind < 0.13:  # full
        return Beard(density, length, 1.0, 1.0, float(rng.uniform(0.5, 1))), 0.5 * density
    if kind < 0.17:  # long
        return Beard(density, long, 1.0, 1.0, 0.8), 0.4
    if kind < 0.23:  # around the mouth
        return Beard(density, length, 1.0, 1.0, 0.0), 0.3 * shadow
    if kind < 0.26:  # the chin
        return Beard(density, length, 0.0, 0.9, 0.0), 0.3 * shadow
    if kind < 0.33:  # a moustache
        return Beard(density, min(length, 0.06), 1.0, 0.0, 0.0), 0.2 * shadow
    return None, shadow if kind < 0.7 else 0.0


def draw_colour(rng: np.random.Generator, age: float, *, dark: bool) -> str:
    """One of `appearance.HAIR_COLOURS`."""
    grey = float(np.clip((age - 40) / 35, 0, 0.9))
    words = GREYS if rng.random() < grey else DARK if dark else ANY
    return str(rng.choice(list(words), p=list(words.values())))
