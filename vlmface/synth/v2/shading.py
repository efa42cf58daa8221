"""Light on heads of version 2: a lamp with soft shadows, a fill light, and light from all sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import rtcore_scene
from PIL import Image, ImageFilter

from vlmface.synth import appearance as paint
from vlmface.synth.appearance import bump, linear
from vlmface.synth.head import LEFT_EYE, RIGHT_EYE, TONGUE, UPPER_TEETH, head_model
from vlmface.synth.render import Hits
from vlmface.synth.shading import (
    eye_albedo,
    gaze_direction,
    key_direction,
    lamps_on,
    sky_light,
)
from vlmface.synth.v2 import skin, texture
from vlmface.synth.v2.glasses import WRAP, Fit
from vlmface.synth.v2.layers import BEARD, CURTAIN, FRAME, HAIR
from vlmface.synth.v2.parameters import PhotoFace


@dataclass(frozen=True)
class Posed:
    """A head in its scene.

    Attributes:
        face: what is drawn.
        turn: (3, 3) rotation of the head.
        placed: (n, 3) vertices of the model where they are in the scene.
        scene: what casts shadows.
    """

    face: PhotoFace
    turn: np.ndarray
    placed: np.ndarray
    scene: rtcore_scene.EmbreeScene


@dataclass
class _Material:
    """Albedo (k, 3), brightness (k,), gloss (k,), power of the shine (k,) and normals (k, 3)."""

    albedo: np.ndarray
    shade: np.ndarray
    gloss: np.ndarray
    power: np.ndarray
    normal: np.ndarray


def shade(head: Posed, attributes: np.ndarray, hits: Hits, kind: np.ndarray) -> np.ndarray:
    """The colour (k, 3), linear RGB, of the points that rays met; `attributes` (k, 9) as in
    `HeadMesh`, `kind` (k,) as in `layers`."""
    view = head.face.view
    material = _materials(head, attributes, hits.where, kind)
    normal = material.normal
    key = key_direction(view)
    shadow = _soft_shadow(head, hits, normal, key)
    inner = (kind >= LEFT_EYE) & (kind <= TONGUE)
    shadow[inner] = np.maximum(shadow[inner], 0.7)
    sky = sky_light(attributes[:, :3], kind, attributes[:, 8])
    light = lamps_on(view, normal, key, shadow, wrap=0.16)
    environment = np.array(view.environment, np.float32)
    around = environment[0] + normal @ environment[1:]
    light += view.ambient * np.clip(around, 0.06, None)
    # Blood under thin skin keeps the terminator red.
    light[:, 0] += 0.10 * view.key * bump(normal @ key, 0.35) * (kind == 0)
    light *= (0.14 + 0.86 * np.power(sky, 1.3))[:, None]
    half = key + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    shine = np.power(np.clip(normal @ half, 0, 1), material.power) * shadow * view.key
    rim = np.power(1 - np.clip(normal[:, 2], 0, 1), 4) * 0.5 * view.ambient
    shine = material.gloss * (shine + rim) * sky
    return (material.albedo * light + shine[:, None]) * material.shade[:, None]


def _materials(
    head: Posed, attributes: np.ndarray, where: np.ndarray, kind: np.ndarray
) -> _Material:
    look, view = head.face.look, head.face.view
    template, normal = attributes[:, :3], attributes[:, 3:6] @ head.turn.T
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    normal = np.where((normal[:, 2:3] < -0.2) & (kind[:, None] >= HAIR), -normal, normal)
    count = len(template)
    material = _Material(
        np.empty_like(template),
        np.ones(count, np.float32),
        np.full(count, 0.05, np.float32),
        np.full(count, 22, np.float32),
        normal,
    )
    on = kind == 0
    surface = skin.surface(head.face, template[on], attributes[on, 6], attributes[on, 7])
    material.albedo[on], material.shade[on] = surface.albedo, surface.shade
    material.gloss[on] = surface.gloss
    for eye in (LEFT_EYE, RIGHT_EYE):
        on = kind == eye
        if on.any():
            out = where[on] - head_model().eye_centre(head.placed, eye)
            out /= np.linalg.norm(out, axis=1, keepdims=True)
            colour = eye_albedo(out @ gaze_direction(view, head.turn), look.eye_colour)
            # The upper lid and its lashes shade the eye.
            lid = paint.smoothstep(-0.05, 0.42, out @ head.turn[:, 1])
            material.albedo[on] = colour * (0.86 - 0.5 * lid)[:, None]
            material.normal[on], material.gloss[on], material.power[on] = out, 0.9, 90
    teeth = (kind == UPPER_TEETH) | (kind == UPPER_TEETH + 1)
    material.albedo[teeth], material.gloss[teeth] = linear((0.90, 0.86, 0.77)), 0.25
    material.albedo[kind == TONGUE] = linear((0.70, 0.36, 0.34))
    on = (kind >= HAIR) & (kind != FRAME)
    material.albedo[on] = _hair(head.face, attributes[on], kind[on])
    material.gloss[on] = (0.02 + 0.10 * look.hair.gloss) * np.where(kind[on] == HAIR, 1.0, 0.4)
    material.power[on] = 10 + 14 * look.hair.gloss
    on = kind == FRAME
    if look.glasses is not None and on.any():
        material.albedo[on] = linear(look.glasses.colour)
        material.gloss[on], material.power[on] = look.glasses.gloss, 40
    return material


def _hair(face: PhotoFace, attributes: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Albedo (k, 3) of hair: locks differ, and roots are darker than tips."""
    look, template = face.look, attributes[:, :3]
    base = linear(paint.HAIR_COLOURS[look.hair_colour])
    tone, along = attributes[:, 6], attributes[:, 7]
    u, v = texture.unrolled(template)
    strand = texture.at(texture.tile(0.4), u * 120, v * 8)
    clump = texture.at(texture.tile(1.2), u * 40, v * 30 + look.hair.seed)
    bright = 1 + 0.16 * strand + 0.14 * clump + 0.20 * tone + 0.20 * (along - 0.5)
    bright *= np.where(kind == CURTAIN, 0.9, np.where(kind == BEARD, 1.1, 1.0))
    # Single grey hairs come before grey hair.
    grey = np.clip((look.age - 38) / 50, 0, 0.5) * np.clip(tone * 2 - 1, 0, 1)
    colour = base + grey[:, None] * (linear((0.62, 0.61, 0.60)) - base)
    return colour * np.clip(bright, 0.25, 2.0)[:, None]


def _soft_shadow(head: Posed, hits: Hits, normal: np.ndarray, key: np.ndarray) -> np.ndarray:
    """What is left (k,) of the lamp's light: rays to points of a lamp that is not small, blurred
    over neighbours in the picture."""
    view = head.face.view
    rng = np.random.default_rng([71, view.background_seed])
    spread = rng.standard_normal((len(normal), 3), np.float32) * np.float32(0.16 * view.softness)
    towards = key + spread
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    lit = head.scene.run(
        (hits.where + normal * np.float32(0.02)).astype(np.float32),
        towards.astype(np.float32),
        query="OCCLUDED",
    )
    wide = round(len(hits.hit) ** 0.5)
    layers = np.zeros((wide * wide, 2), np.uint8)  # what is lit, and what is there at all
    layers[hits.hit, 0] = np.where(lit == -1, 255, 0)
    layers[hits.hit, 1] = 255
    blur = ImageFilter.BoxBlur(wide * (0.006 + 0.012 * view.softness))
    blurred = Image.fromarray(layers.reshape(wide, wide, 2), "LA").filter(blur)
    light, coverage = np.asarray(blurred, np.float32).reshape(-1, 2)[hits.hit].T
    share = light / np.maximum(coverage, 1)
    return view.shadow + (1 - view.shadow) * np.clip(share, 0, 1)


def add_lenses(
    picture: np.ndarray, fit: Fit, head: Posed, origins: np.ndarray, directions: np.ndarray
) -> None:
    """Lay the lenses of glasses over a picture (n, 3), linear RGB, in place.

    Args:
        picture: the colours that n rays met.
        fit: where the glasses are, in the head's frame.
        head: the head.
        origins: (n, 3) of the rays, in the head's frame.
        directions: (n, 3) of the rays, in the head's frame.
    """
    glasses, view = fit.glasses, head.face.view
    ahead = np.where(np.abs(directions[:, 2]) < 0.05, -0.05, directions[:, 2])
    depth = np.full(len(origins), fit.z - WRAP * fit.centre_x**2, np.float32)
    for _ in range(2):
        way = (depth - origins[:, 2]) / ahead
        x = origins[:, 0] + way * directions[:, 0] - fit.middle[0]
        depth = fit.z - WRAP * np.square(np.clip(x, -0.7, 0.7))
    y = origins[:, 1] + way * directions[:, 1]
    on = (way > 0) & (directions[:, 2] < -0.05) & fit.covers(np.stack([x + fit.middle[0], y], 1))
    if not on.any():
        return
    x, y, rays = x[on], y[on], directions[on]
    normal = np.stack(
        [
            2 * WRAP * x + 0.5 * (np.abs(x) - fit.centre_x) * np.sign(x),
            0.5 * (y - fit.y),
            np.ones_like(x),
        ],
        1,
    )
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    mirrored = rays - 2 * (rays * normal).sum(1, keepdims=True) * normal
    mirrored = mirrored @ head.turn.T
    glare = paint.smoothstep(0.86, 0.93, mirrored @ key_direction(view)) * view.key
    sky = (0.10 + 0.25 * np.clip(mirrored[:, 1], 0, 1)) * view.ambient
    added = glasses.reflection * (0.8 * glare + 0.5 * sky)
    picture[on] = picture[on] * (1 - glasses.tint) + added[:, None].astype(np.float32)
