"""What an item looks like in the report: a thumbnail, a sound, a text, small enough to be carried in the page."""

from __future__ import annotations

import base64
import io
import math
import wave
from typing import Any

import numpy as np
from PIL import Image
from scipy.signal import resample_poly

from repertory.data import Preview
from repertory.errors import DataError

THUMBNAIL = 72  # pixels of the longer side
RATE, SECONDS = 11_025, 2.0
TEXT = 400  # characters


def thumbnail(image: Any, size: int = THUMBNAIL) -> str:
    """The image as a ``data:`` URI, its longer side at most ``size`` pixels."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise DataError(f"thumbnail: shape {array.shape}; needs [H, W] or [H, W, C]")
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.dtype != np.uint8:
            array = (255 * np.nan_to_num(array.astype(np.float64)).clip(0, 1)).round().astype(np.uint8)
        image = Image.fromarray(array)
    image = image.convert("RGB")
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def wav(samples: np.ndarray, rate: int) -> str:
    """The first two seconds as a mono 8-bit WAV ``data:`` URI, at most 11,025 Hz."""
    samples = np.nan_to_num(np.asarray(samples, dtype=np.float64)[: int(rate * SECONDS)])
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    if samples.ndim != 1 or not len(samples):
        raise DataError(f"audio: shape {samples.shape}; needs samples [T] or [T, channels]")
    if rate > RATE:
        divisor = math.gcd(RATE, rate)
        samples, rate = resample_poly(samples, RATE // divisor, rate // divisor), RATE
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes((127.5 + 127.5 * samples.clip(-1, 1)).round().astype(np.uint8).tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


def encode(item: Preview) -> dict[str, str]:
    """The item as the page wants it."""
    card = {}
    if item.image is not None:
        card["image"] = thumbnail(item.image)
    if item.audio is not None:
        card["audio"] = wav(*item.audio)
    if item.text:
        card["text"] = item.text if len(item.text) <= TEXT else item.text[:TEXT].rstrip() + "…"
    return card
