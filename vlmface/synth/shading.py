"""Light and colours of the points that rays met. Colours are linear RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import rtcore_scene

from vlmface.synth import appearance as paint
from vlmface.synth.appearance import Appearance, bump, linear, noise, smoothstep
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.head import LEFT_EYE, RIGHT_EYE, TONGUE, UPPER_TEETH, head_model
from vlmface.synth.head_mesh import CURTAIN, HAIR


@dataclass(frozen=True)
class PosedHead:
    """A head in a scene.

    Attributes:
        face: what is drawn.
        turn: (3, 3) rotation of the head.
        placed: (n, 3) vertices where they are in the scene, the model's first.
        scene: what casts shadows.
    """

    face: Face
    turn: np.ndarray
    placed: np.ndarray
    scene: rtcore_scene.EmbreeScene


def key_direction(view: View) -> np.ndarray:
    """The unit vector (3,) towards the key light."""
    return np.array(view.light, np.float32) / np.float32(np.linalg.norm(view.light))


def key_shadow(
    scene: rtcore_scene.EmbreeScene, where: np.ndarray, normal: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """What is left of the key light (k,) at points with their normals: less where it is blocked."""
    lit = scene.run(
        (where + normal * np.float32(0.02)).astype(np.float32),
        np.tile(key, (len(where), 1)),
        query="OCCLUDED",
    )
    return np.where(lit == -1, 1.0, 0.45).astype(np.float32)


def lamps_on(
    view: View, normal: np.ndarray, key: np.ndarray, shadow: np.ndarray, wrap: float = 0.3
) -> np.ndarray:
    """The light (k, 3) of key and fill light, linear RGB, on points with their normals (k, 3);
    `wrap`: how far the key light reaches around, cosine."""
    facing = normal @ key
    reach = np.float32(wrap)
    diffuse = np.clip((facing + reach) / (1 + reach), 0, None) * shadow
    fill_from = np.array([-key[0], 0.15, 0.8], np.float32)
    fill = np.clip(normal @ (fill_from / np.linalg.norm(fill_from)), 0, None)
    return (view.key * diffuse)[:, None] * linear(view.key_colour) + (view.fill * fill)[:, None]


def light_on(view: View, normal: np.ndarray, key: np.ndarray, shadow: np.ndarray) -> np.ndarray:
    """The light (k, 3), linear RGB, that falls on points with their normals (k, 3)."""
    above = 0.5 + 0.5 * normal[:, 1]
    lamps = lamps_on(view, normal, key, shadow)
    return lamps + (view.ambient * (0.6 + 0.4 * above))[:, None]


def shade_head(
    head: PosedHead, attributes: np.ndarray, where: np.ndarray, kind: np.ndarray
) -> np.ndarray:
    """The colour (k, 3) of the points of a head that rays met.

    Args:
        head: the head.
        attributes: (k, 9) those of the mesh at the points.
        where: (k, 3) the points.
        kind: (k,) what each point shows.
    """
    look, view, model = head.face.look, head.face.view, head_model()
    template, normal = attributes[:, :3], attributes[:, 3:6]
    lips, inside, sky = attributes[:, 6], attributes[:, 7], attributes[:, 8]
    normal = normal @ head.turn.T
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    normal = np.where((normal[:, 2:3] < -0.2) & (kind[:, None] >= HAIR), -normal, normal)

    albedo = np.empty_like(template)
    gloss = np.full(len(attributes), 0.05, np.float32)
    skin = kind == 0
    albedo[skin], relief = _skin(head.face, template[skin], lips[skin], inside[skin])
    gloss[skin] = 0.055 + 0.09 * lips[skin]
    for eye in (LEFT_EYE, RIGHT_EYE):
        on = kind == eye
        if on.any():
            centre = model.eye_centre(head.placed[: len(model.template)], eye)
            out = where[on] - centre
            out /= np.linalg.norm(out, axis=1, keepdims=True)
            albedo[on] = eye_albedo(out @ gaze_direction(view, head.turn), look.eye_colour)
            normal[on], gloss[on] = out, 0.9
    teeth = (kind == UPPER_TEETH) | (kind == UPPER_TEETH + 1)
    albedo[teeth] = linear((0.93, 0.90, 0.83))
    gloss[teeth] = 0.25
    albedo[kind == TONGUE] = linear((0.70, 0.36, 0.34))
    hair = kind >= HAIR
    albedo[hair] = _hair(template[hair], kind[hair], look)
    gloss[hair] = 0.10
    sky = sky_light(template, kind, sky)

    key = key_direction(view)
    shadow = key_shadow(head.scene, where, normal, key)
    shadow[(kind >= LEFT_EYE) & (kind <= TONGUE)] = 0.85
    light = light_on(view, normal, key, shadow)
    # Blood under thin skin keeps the terminator red.
    glow = np.zeros_like(light)
    glow[:, 0] = 0.10 * view.key * bump(normal @ key, 0.35) * (kind == 0)
    light = (light + glow) * (0.25 + 0.75 * sky)[:, None]
    half = key + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    power = np.where((kind == LEFT_EYE) | (kind == RIGHT_EYE), 90, np.where(hair, 14, 22))
    shine = gloss * np.power(np.clip(normal @ half, 0, 1), power) * shadow * view.key
    colour = albedo * light + (shine * sky)[:, None]
    shade = np.ones(len(attributes), np.float32)
    shade[skin] = np.clip(1 + 0.42 * relief, 0.30, 1.25)
    return colour * shade[:, None]


def sky_light(template: np.ndarray, kind: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """How much of the sky (k,) each point sees; `sky` is what the skin there would see."""
    sky = np.where(kind >= HAIR, 0.85, sky)
    visible = smoothstep(1.15, 1.40, template[:, 2]) * smoothstep(
        0.26, 0.12, np.abs(template[:, 0])
    )
    teeth = (kind == UPPER_TEETH) | (kind == UPPER_TEETH + 1)
    sky = np.where(teeth, 0.15 + 0.70 * visible, sky)
    return np.where((kind == LEFT_EYE) | (kind == RIGHT_EYE), np.maximum(sky, 0.62), sky)


def gaze_direction(view: View, turn: np.ndarray) -> np.ndarray:
    """The unit vector (3,) of the gaze, for a head that is rotated by `turn`."""
    yaw, pitch = np.radians(view.gaze)
    gaze = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    return (turn @ gaze).astype(np.float32)


def _skin(
    face: Face, template: np.ndarray, lips: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (k, 3) and wrinkle relief (k,) of skin points."""
    look = face.look
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    base = skin_tone = paint.skin_colour(look.tone, look.warmth)
    mottle = (
        noise(template, 7.0, look.texture_seed) * 0.035
        + noise(template, 30.0, look.texture_seed + 1) * 0.025
    )
    albedo = base * (1 + mottle)[:, None]
    flush = blood(x, y)
    albedo *= 1 + flush[:, None] * np.array([0.06, -0.06, -0.05], np.float32) * (1.3 - look.tone)
    socket = bump(np.hypot(x - 0.31, y - 7.29), 0.16) * (z > 0.9)
    albedo *= (1 - 0.12 * socket)[:, None]
    area = beard_area(template, lips)
    grain = 0.88 + 0.12 * noise(template, 60.0, look.texture_seed + 5)
    hair = linear(paint.HAIR_COLOURS[look.hair_colour])
    cover = np.clip(area * (0.30 * look.stubble + 0.85 * look.beard) * grain, 0, 1)[:, None]
    albedo = albedo * (1 - cover) + hair * cover
    albedo = paint_mouth(albedo, lips, inside, skin_tone, look.lip_tint)
    alpha = paint.brow_alpha(template, look)[:, None]
    albedo = albedo * (1 - alpha) + hair * 0.8 * alpha
    albedo = darken_lashes(albedo, template)
    style = paint.HAIR_STYLES[look.hair_style]
    if style[0]:
        roots = smoothstep(-0.03, 0.06, paint.hair_amount(template, style[2]))[:, None] * 0.85
        albedo = albedo * (1 - roots) + hair * roots
    collar = smoothstep(5.93, 5.90, y + 0.22 * bump(x, 0.35) * (z > 0.2))[:, None]
    albedo = albedo * (1 - collar) + linear(look.cloth) * collar
    relief = paint.wrinkles(template, sided_strengths(face, template), look.age)
    return albedo.astype(np.float32), relief * (1 - np.clip(lips + inside, 0, 1)) * (
        1 - alpha[:, 0] * 0.7
    )


def blood(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How red (n,) skin is: cheeks, nose and around the eyes, at |x| and y of the template."""
    flush = 0.9 * bump(np.hypot(x - 0.42, y - 6.95), 0.22) + 0.7 * bump(np.hypot(x, y - 6.93), 0.13)
    return flush + 0.35 * bump(np.hypot(x - 0.31, y - 7.28), 0.2)


def beard_area(template: np.ndarray, lips: np.ndarray) -> np.ndarray:
    """Where (n,) beards and stubble grow, 0..1: the lower face up to the cheek line, not the
    lips."""
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    area = (
        smoothstep(6.86, 6.70, y - 0.10 * smoothstep(0.3, 0.7, x))
        * smoothstep(5.98, 6.12, y)
        * (z > 0.25)
    )
    return (
        area * smoothstep(0.03, 0.10, np.abs(y - 6.60) + 0.4 * np.clip(x - 0.22, 0, 1)) * (1 - lips)
    )


def paint_mouth(
    albedo: np.ndarray, lips: np.ndarray, inside: np.ndarray, skin_tone: np.ndarray, tint: float
) -> np.ndarray:
    """The albedo (n, 3) with lips, more red with their `tint` 0..1, and the inside of the mouth."""
    rouge = linear((0.72, 0.36, 0.36)) * (0.35 + 0.65 * np.power(skin_tone[0], 0.6))
    blend = np.clip(lips * (0.55 + 0.4 * tint), 0, 1)[:, None]
    albedo = albedo * (1 - blend) + rouge * blend
    cavity = np.clip(inside - lips * 0.5, 0, 1)[:, None]
    return albedo * (1 - cavity) + linear((0.42, 0.15, 0.15)) * cavity


def darken_lashes(albedo: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The albedo (n, 3) with the lines of the lashes."""
    y, z = template[:, 1], template[:, 2]
    for centre_x in (0.3078, -0.3078):
        out = np.sqrt((template[:, 0] - centre_x) ** 2 + (y - 7.284) ** 2 + (z - 1.2454) ** 2)
        lash = bump(out - 0.150, 0.014) * (0.45 + 0.5 * (y > 7.27)) * (z > 1.25)
        albedo *= (1 - np.clip(lash, 0, 0.85))[:, None]
    return albedo


def sided_strengths(face: Face, template: np.ndarray) -> dict[int, np.ndarray]:
    """AU -> its strength (n,) at points of the skin, by the side that they are on."""
    left = template[:, 0] > 0
    return {
        au: np.where(left, np.float32(face.left.get(au, 0.0)), np.float32(face.right.get(au, 0.0)))
        for au in set(face.left) | set(face.right)
    }


def eye_albedo(cosine: np.ndarray, eye_colour: str) -> np.ndarray:
    """Albedo (k, 3) of eyeball points from the cosine of their angle to the gaze axis."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    iris = smoothstep(0.52, 0.46, angle)[:, None]
    pupil = smoothstep(0.22, 0.17, angle)[:, None]
    ring = (bump(angle - 0.47, 0.06) * 0.5)[:, None]
    colour = linear((0.94, 0.92, 0.90)) * (1 - iris) + linear(paint.EYE_COLOURS[eye_colour]) * iris
    return colour * (1 - ring) * (1 - 0.95 * pupil)


def _hair(template: np.ndarray, kind: np.ndarray, look: Appearance) -> np.ndarray:
    """Albedo (k, 3) of hair points, with strands running from the crown."""
    base = linear(paint.HAIR_COLOURS[look.hair_colour])
    around = np.arctan2(template[:, 0], template[:, 2] - 0.35)
    strands = np.sin(around * 70 + 3 * noise(template, 3.0, look.texture_seed))
    clumps = noise(template, 16.0 if look.hair_style == "curly" else 6.0, look.texture_seed + 2)
    if look.hair_style == "curly":
        strands = noise(template, 30.0, look.texture_seed + 3)
    fade = np.where(kind == CURTAIN, 0.75, 1.0)
    return base * (fade * np.clip(1 + 0.22 * strands + 0.2 * clumps, 0.3, 1.8))[:, None]
