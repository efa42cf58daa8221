"""Colours and relief of the skin, its hair and clothes, of people of version 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmface.synth import appearance as paint
from vlmface.synth.appearance import bump, linear, smoothstep
from vlmface.synth.shading import (
    beard_area,
    blood,
    darken_lashes,
    paint_mouth,
    sided_strengths,
)
from vlmface.synth.v2 import beard, hair, texture
from vlmface.synth.v2.parameters import Look, PhotoFace

COLLARS = {"crew": 5.93, "vee": 5.90, "collar": 5.97, "high": 6.03}  # height, dm


@dataclass(frozen=True)
class Surface:
    """Albedo (k, 3), brightness of furrows (k,) and gloss (k,) of points of the skin."""

    albedo: np.ndarray
    shade: np.ndarray
    gloss: np.ndarray


def surface(face: PhotoFace, template: np.ndarray, lips: np.ndarray, inside: np.ndarray) -> Surface:
    """The surface at points of the skin with their template coordinates (k, 3)."""
    look, skin = face.look, face.look.skin
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    u, v = texture.unrolled(template)
    u, v = u + look.texture_seed % 97, v + look.texture_seed % 89
    grain = texture.at(texture.tile(0.35), u * 110, v * 110)
    blotch = texture.at(texture.tile(1.2), u * 45, v * 45)
    albedo = _bare(look, template, grain, blotch)
    tone = paint.skin_colour(look.tone, look.warmth)
    hair_colour = linear(paint.HAIR_COLOURS[look.hair_colour])
    shaven = beard_area(template, lips) * (0.34 * look.stubble) * (0.9 + 0.25 * grain)
    if look.face_hair is not None:
        grown = beard.area(template, lips, look.face_hair) * look.face_hair.density
        shaven = np.maximum(shaven, 0.95 * grown * (0.9 + 0.2 * grain))
    cover = np.clip(shaven, 0, 0.93)[:, None]
    albedo = albedo * (1 - cover) + hair_colour * (0.8 + 0.2 * (1 - cover)) * cover
    albedo = paint_mouth(albedo, lips, inside, tone, look.lip_tint)
    brows = paint.brow_alpha(template, look) * (0.65 + 0.35 * look.brow_density)
    brows = np.clip(brows * (0.85 + 0.28 * grain), 0, 0.93)[:, None]
    albedo = albedo * (1 - brows) + hair_colour * 0.8 * brows
    albedo = darken_lashes(albedo, template)
    if look.hair.top > 0:
        above = hair.amount(template, look.hair)
        roots = smoothstep(-0.03, 0.07, above) * (0.75 if look.hair.top < 0.03 else 0.92)
        roots = np.clip(roots * (0.92 + 0.15 * grain), 0, 1)[:, None]
        albedo = albedo * (1 - roots) + hair_colour * roots
    cloth, is_cloth = _clothes(look, template, u, v)
    albedo = albedo * (1 - is_cloth) + cloth * is_cloth
    strengths = sided_strengths(face, template)
    if 46 in strengths:
        strengths[7] = np.maximum(strengths.get(7, np.float32(0)), 0.8 * strengths[46])
    relief = paint.wrinkles(template, strengths, look.age)
    relief = relief * (1 - np.clip(lips + inside, 0, 1)) * (1 - 0.7 * brows[:, 0]) * skin.depth
    bare = 1 - is_cloth[:, 0]
    oily = 0.5 * bump(x, 0.16) * (z > 1.2) + 0.5 * bump(np.hypot(x - 0.42, y - 7.02), 0.16)
    oily = oily + 0.6 * bump(np.hypot(x / 1.8, y - 7.85), 0.2)
    gloss = (0.03 + 0.16 * skin.gloss * (0.4 + oily)) * (1 - cover[:, 0]) + 0.09 * lips
    return Surface(
        albedo.astype(np.float32),
        np.clip(1 + 0.42 * relief * bare, 0.30, 1.25),
        gloss * (0.2 + 0.8 * bare) * (1 + 0.12 * skin.pores * np.clip(grain, -2, 2)),
    )


def _bare(look: Look, template: np.ndarray, grain: np.ndarray, blotch: np.ndarray) -> np.ndarray:
    """Albedo (k, 3) of skin without hair, lips and clothes."""
    skin = look.skin
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    base = paint.skin_colour(look.tone, look.warmth)
    albedo = base * (1 + 0.022 * skin.pores * grain + 0.05 * skin.blotches * blotch)[:, None]
    red = blood(x, y) * (0.3 + 1.6 * skin.flush) + 0.35 * skin.blotches * blotch
    albedo *= 1 + red[:, None] * np.array([0.05, -0.06, -0.05], np.float32) * (1.3 - look.tone)
    socket = bump(np.hypot(x - 0.31, y - 7.29), 0.16) * (z > 0.9)
    under = bump(np.hypot((x - 0.29) / 1.4, y - 7.17), 0.07) * (z > 0.9)
    dark = np.array([0.8, 1.0, 0.85], np.float32)
    albedo *= 1 - (0.20 * socket + 0.32 * skin.circles * under)[:, None] * dark
    # Necks are darker than faces, and so is what lies under a chin.
    albedo *= (1 - 0.08 * smoothstep(6.3, 6.0, y))[:, None]
    if skin.freckles > 0:
        where = bump(np.hypot(x * 0.75 - 0.2, y - 7.03), 0.26)
        spots = np.clip(grain + 0.4 * blotch - 0.9, 0, 1) * where
        albedo *= 1 - (0.55 * skin.freckles * spots)[:, None] * np.array([0.5, 0.8, 1], np.float32)
    for mole_x, mole_y, radius in skin.moles:
        near = np.square(template[:, 0] - mole_x) + np.square(y - mole_y) < (2.5 * radius) ** 2
        if near.any():
            away = np.hypot(template[near, 0] - mole_x, y[near] - mole_y)
            albedo[near] *= (1 - 0.6 * bump(away, radius) * (z[near] > 0.5))[:, None]
    return albedo


def _clothes(
    look: Look, template: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (k, 3) of the clothes, and where they are: (k, 1), 0..1."""
    clothes = look.clothes
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    low = 0.22 * bump(x, 0.35) * (z > 0.2)
    if clothes.neckline == "vee":
        low = 0.42 * np.clip(1 - x / 0.42, 0, 1) * (z > 0.2)
    elif clothes.neckline == "collar":
        low = 0.30 * np.clip(1 - x / 0.20, 0, 1) * (z > 0.2)
    elif clothes.neckline == "high":
        low = 0.05 * bump(x, 0.35) * (z > 0.2)
    edge = COLLARS[clothes.neckline]
    is_cloth = smoothstep(edge, edge - 0.03, y + low)[:, None]
    first, second = linear(look.cloth), linear(clothes.second)
    if clothes.pattern == "stripes":
        share = smoothstep(-0.2, 0.2, np.sin(60 * u))
    elif clothes.pattern == "checks":
        share = 0.5 * smoothstep(-0.2, 0.2, np.sin(45 * u)) + 0.5 * smoothstep(
            -0.2, 0.2, np.sin(45 * v)
        )
    else:
        share = np.zeros(len(x), np.float32)
    cloth = first + share[:, None] * (second - first)
    if clothes.neckline == "collar":  # of a shirt under what else is worn
        shirt = smoothstep(edge - 0.16, edge - 0.13, y + low - 0.25 * x)[:, None]
        cloth = cloth * (1 - shirt) + second * shirt
    rough = 0.16 if clothes.pattern == "knit" else 0.06
    weave = texture.at(texture.tile(0.35), u * 90, v * 60)
    fold = texture.at(texture.tile(1.6), u * 25, v * 25)
    return cloth * (1 + rough * weave + 0.12 * fold)[:, None], is_cloth
