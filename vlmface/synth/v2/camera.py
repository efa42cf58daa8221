"""From light to a picture: exposure, optics, sensor, tone curve and files."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vlmface.synth.render import encode_jpeg
from vlmface.synth.v2.parameters import Camera, Photo

RESAMPLING = Image.Resampling
METERED, METERING = 0.22, 0.75  # linear light that is exposed as it is; 1: all else too


def develop(light: np.ndarray, size: int, view: Photo) -> tuple[np.ndarray, bytes]:
    """The picture, uint8 (size, size, 3), and its JPEG file, of light (h, w, 3), linear RGB."""
    camera = view.camera
    rng = np.random.default_rng([43, view.background_seed])
    image = Image.fromarray(_exposed(light, camera))
    wide = image.width
    if camera.defocus > 0:
        image = image.filter(ImageFilter.GaussianBlur(camera.defocus * wide))
    if camera.motion != (0.0, 0.0):
        image = Image.fromarray(_moved(np.asarray(image), camera.motion))
    sensor = max(24, min(wide, round(size * camera.sensor)))
    image = image.resize((sensor, sensor), RESAMPLING.BOX)
    image = Image.fromarray(_noisy(np.asarray(image), camera, rng))
    if camera.first_jpeg:
        image = Image.fromarray(encode_jpeg(image, camera.first_jpeg)[0])
    if sensor != size:
        image = image.resize((size, size), RESAMPLING.BICUBIC)
    if camera.sharpening > 0:
        percent = round(100 * camera.sharpening)
        image = image.filter(ImageFilter.UnsharpMask(max(0.6, size / 120), percent, 1))
    if camera.grey:
        image = image.convert("L").convert("RGB")
    elif camera.saturation != 1:
        image = ImageEnhance.Color(image).enhance(camera.saturation)
    return encode_jpeg(image, view.jpeg)


def _exposed(light: np.ndarray, camera: Camera) -> np.ndarray:
    """Light (h, w, 3) to grey levels, by exposure, white balance, vignette and tone curve."""
    light = np.clip(light, 0, None)
    # Cameras measure the light, most of it in the middle, but leave dark things darker.
    third = len(light) // 3
    measured = 0.7 * light[third:-third, third:-third].mean() + 0.3 * light.mean()
    exposure = camera.exposure * (METERED / max(float(measured), 0.01)) ** METERING
    light = light * (np.array(camera.balance, np.float32) * np.float32(exposure))
    if camera.vignette > 0:
        axis = np.linspace(-1, 1, len(light), dtype=np.float32)
        square = axis * axis
        light *= (1 - camera.vignette * 0.5 * (square[:, None] + square))[..., None]
    # A shoulder instead of a hard limit at white, then the display's power.
    level = np.power(light / (0.75 + 0.3 * light), np.float32(camera.gamma / 2.2))
    level = 0.45 + (level - 0.45) * camera.contrast
    level = camera.black + (1 - camera.black) * level
    return np.clip(level * 255, 0, 255).astype(np.uint8)


def _moved(pixels: np.ndarray, motion: tuple[float, float]) -> np.ndarray:
    """The mean of pictures along a motion in shares of the picture's size."""
    high = len(pixels)
    x, y = motion[0] * high, motion[1] * high
    steps = max(2, min(9, round(max(abs(x), abs(y))) + 1))
    total = np.zeros(pixels.shape, np.float32)
    margin = int(np.ceil(max(abs(x), abs(y)) / 2)) + 1
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    for share in np.linspace(-0.5, 0.5, steps):
        left, top = margin + round(share * x), margin + round(share * y)
        total += padded[top : top + high, left : left + high]
    return (total / steps).astype(np.uint8)


def _noisy(pixels: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Shot noise grows with the light, read noise does not; the channels share a part of both, as
    after the colours were interpolated."""
    level = pixels.astype(np.float32) / 255
    deviation = np.sqrt(camera.read**2 + camera.shot**2 * level.mean(-1, keepdims=True))
    high, wide = level.shape[:2]
    shared = rng.standard_normal((high, wide, 1), np.float32)
    per_channel = rng.standard_normal((high, wide, 3), np.float32)
    noise = (0.8 * shared + 0.6 * per_channel) * deviation
    return np.clip((level + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
