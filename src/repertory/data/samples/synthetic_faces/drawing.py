"""Drawn faces: an identity, moved by facial action units, seen in some pose and light, with its exact parsing map.

Coordinates of the face: x to the right, y down, 0 between the eyes and the nose, the chin at about y = 1 and the skull
at about y = -1. All shapes are functions of these coordinates, measured in pixels for soft edges: a face can be drawn
at any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

CLASSES = ("background", "skin", "right brow", "left brow", "right eye", "left eye", "nose", "upper lip", "inner mouth",
           "lower lip", "hair")  # fmt: skip
"""Of a parsing map, by number (LaPa's order; right and left are the person's)."""
ACTIONS = {
    1: "inner brow raised", 2: "outer brow raised", 4: "brows lowered", 6: "cheeks raised", 7: "lids tightened",
    10: "upper lip raised", 12: "lip corners up", 15: "lip corners down", 17: "chin raised", 25: "lips part",
    26: "jaw drops",
}  # fmt: skip
"""Facial action units that are drawn, by their number in the Facial Action Coding System."""

MARGIN = 1.3
"""Half the side of a picture, in units of the face: its box and 30 %."""
SKIN = np.array([[96, 60, 44], [141, 93, 66], [181, 129, 96], [214, 164, 131], [238, 200, 174]], np.float32)
HAIR = np.array([[28, 22, 20], [64, 42, 30], [112, 74, 44], [176, 134, 82], [150, 146, 142]], np.float32)
IRIS = np.array([[62, 40, 26], [88, 62, 36], [70, 96, 74], [84, 118, 150]], np.float32)

Array = np.ndarray
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Identity:
    """What does not change about a face; lengths in units of the face (1: half its height)."""

    head_width: float
    jaw_width: float
    chin: float
    hairline: float
    hair_volume: float
    hair_length: float
    hair_parting: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_y: float
    brow_width: float
    brow_thickness: float
    brow_arch: float
    nose_y: float
    nose_width: float
    nose_bridge: float
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    beard: float
    blush: float
    marks: tuple[tuple[float, float, float], ...]
    """Moles: x, y, radius."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A random person."""

        def about(middle: float, spread: float) -> float:
            return float(middle + spread * rng.uniform(-1, 1))

        def colour(palette: Array, spread: float) -> Array:
            place = rng.uniform(0, len(palette) - 1)
            low = min(int(place), len(palette) - 2)
            mixed: Array = palette[low] + (place - low) * (palette[low + 1] - palette[low])
            return (mixed + rng.uniform(-spread, spread, 3)).clip(5, 250)

        skin, iris = colour(SKIN, 6), colour(IRIS, 8)
        hair = colour(HAIR, 8)
        lips = 0.72 * skin + 0.28 * np.array([178, 48, 62]) + rng.uniform(-10, 10, 3)
        male = rng.random() < 0.5
        eye_y, nose_y = about(-0.1, 0.04), about(0.32, 0.05)
        marks = rng.uniform([-0.5, -0.4, 0.008], [0.5, 0.8, 0.022], (int(rng.integers(0, 5)), 3))
        return cls(
            head_width=about(0.74, 0.06),
            jaw_width=about(0.80 if male else 0.68, 0.08),
            chin=about(0.98, 0.05),
            hairline=about(-0.62, 0.1),
            hair_volume=about(0.1, 0.05),
            hair_length=float(rng.choice([-0.15, 0.15] if male else [0.2, 0.7, 1.4])) + about(0, 0.1),
            hair_parting=about(0, 0.35),
            eye_x=about(0.34, 0.03),
            eye_y=eye_y,
            eye_width=about(0.165, 0.02),
            eye_height=about(0.072, 0.016),
            eye_tilt=about(-0.01, 0.025),
            brow_y=eye_y - about(0.21, 0.035),
            brow_width=about(0.23, 0.03),
            brow_thickness=about(0.045 if male else 0.032, 0.012),
            brow_arch=about(0.055, 0.03),
            nose_y=nose_y,
            nose_width=about(0.165, 0.035),
            nose_bridge=about(0.055, 0.012),
            mouth_y=nose_y + about(0.25, 0.035),
            mouth_width=about(0.29, 0.045),
            upper_lip=about(0.055, 0.018),
            lower_lip=about(0.075, 0.02),
            skin=tuple(skin),
            hair=tuple(hair),
            iris=tuple(iris),
            lips=tuple(lips.clip(5, 250)),
            beard=float(rng.choice([0, 0, 0.25, 0.5])) if male else 0.0,
            blush=about(0.1, 0.1),
            marks=tuple(map(tuple, marks.tolist())),
        )  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    """x and y of the centres of the pixels in -1..1, ``[1, size]`` and ``[size, 1]``."""
    place = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    return place[None, :], place[:, None]


def _edge(depth: Array, pixel: float) -> Array:
    """Cover of pixels by a shape, from how deep inside it (in units of the face) they lie."""
    return (depth * (1 / pixel) + 0.5).clip(0, 1)


class _Canvas:
    """Pixels ``[3, size, size]`` float32 and classes, painted layer over layer."""

    def __init__(self, size: int, colours: Array) -> None:
        self.pixels = np.broadcast_to(colours, (3, size, size)).astype(np.float32)
        self.parsing = np.zeros((size, size), np.uint8)

    def paint(self, cover: Array, colour: Array | Colour, label: int | Array | None = None, at: tuple = ()) -> None:
        """``colour`` ``[3]`` or ``[3, h, w]`` where ``cover`` ``[h, w]`` is, over the window ``at`` (two slices)."""
        shown = np.asarray(colour, np.float32)
        part = self.pixels[(slice(None), *at)]
        part += cover * ((shown if shown.ndim == 3 else shown[:, None, None]) - part)
        if label is not None:
            np.copyto(self.parsing[at], np.asarray(label, np.uint8), where=cover > 0.5)

    def shade(self, factor: Array, at: tuple) -> None:
        """Multiplies a window's pixels."""
        self.pixels[(slice(None), *at)] *= factor


def render(
    identity: Identity,
    size: int,
    rng: np.random.Generator,
    actions: Mapping[int, float] | None = None,
    pose: float = 1.0,
    light: float = 1.0,
    noise: float = 3.0,
) -> tuple[Array, Array]:
    """A picture of a face and its parsing map.

    Args:
        identity: whose face.
        size: side of the picture in pixels, at least 16.
        rng: draws pose, light, background and noise; an equally seeded one gives the same for another face.
        actions: intensity 0..1 of facial action units by number (:data:`ACTIONS`); others change nothing.
        pose: how much the head is turned, moved and scaled at random; 0: frontal and centred.
        light: how much the light varies.
        noise: deviation of the camera's noise, of 255.

    Returns:
        ``[size, size, 3]`` uint8, and the class of each pixel (:data:`CLASSES`) ``[size, size]`` uint8.
    """
    face = identity
    unit = {number: min(max(float((actions or {}).get(number, 0.0)), 0.0), 1.0) for number in ACTIONS}
    moved = pose * rng.uniform(-1, 1, 6) * (0.12, 0.05, 0.05, 0.06, 0.09, 0.04)
    roll, shift_x, shift_y, scale, yaw, pitch = moved.tolist()  # Python's numbers leave arrays in float32
    light_x, light_y = (light * rng.uniform(-1, 1, 2) * (0.3, 0.2)).tolist()
    gain = (1 + light * rng.uniform(-0.12, 0.12)) * (1 + light * rng.uniform(-0.04, 0.04, 3))
    wall = rng.uniform(50, 220) + rng.uniform(-30, 30, 3)
    slope = rng.uniform(-25, 25, 2).tolist()
    cloth = rng.uniform(20, 220, 3)

    i, j = _grid(size)
    stretch, pixel = MARGIN * (1 + scale), 2 * MARGIN * (1 + scale) / size
    cos, sin = stretch * math.cos(roll), stretch * math.sin(roll)
    x = cos * (i - shift_x) + sin * (j - shift_y)
    y = cos * (j - shift_y) - sin * (i - shift_x) + 0.02
    canvas = _Canvas(size, wall.astype(np.float32)[:, None, None] + slope[0] * i + slope[1] * j)
    skin, hair = np.array(face.skin, np.float32), np.array(face.hair, np.float32)

    # what is turned moves with its depth: inner features more than the outline
    inner = x - yaw
    far = np.abs(inner)
    height = y - pitch

    # hair behind, neck, shoulders
    waves = 3 * np.sin(4 * y + 20 * face.hair_parting)
    strands = 1 + 0.06 * np.sin(31 * x + waves) + 0.05 * np.sin(53 * x - 5 * y + 2 * waves)
    volume = face.head_width + face.hair_volume
    crown = 1 - np.sqrt((x / volume) ** 2 + ((y + 0.08) / (1 + face.hair_volume)) ** 2)
    above = face.hair_length - y
    behind = np.minimum(crown, above)
    if face.hair_length > 0.3:
        falls = np.minimum(volume - np.abs(x) - 0.05 * np.sin(5 * y), above)
        behind = np.maximum(behind, np.minimum(falls, y + 0.1))
    neck = np.minimum(0.36 + 0.25 * (y - 1.05).clip(0) - np.abs(x), y - 0.6)
    canvas.paint(_edge(behind, pixel), hair[:, None, None] * strands, 10)
    canvas.paint(_edge(neck, pixel), 0.72 * skin, 0)
    canvas.paint(_edge(y - 1.22 - 0.25 * x * x, pixel), cloth, 0)

    # head
    chin = face.chin + 0.13 * unit[26] - 0.02 * unit[17]
    down = y.clip(0) / chin
    wide = face.head_width * (1 - (1 - face.jaw_width) * down * np.sqrt(down))
    tall = np.where(y > 0, down, y / 0.98)
    square = (x / wide) ** 2 + tall * tall
    reach = np.sqrt(square)
    ears = np.minimum(0.1 - np.abs(np.abs(x) - face.head_width + 0.01), 0.16 - np.abs(y - 0.02))
    canvas.paint(_edge(ears * 0.8, pixel), 0.85 * skin, 1)
    head = _edge((1 - reach) * 0.7, pixel)
    bright = 1.06 + light_x * x - light_y * y - 0.24 * square * square
    cheek = np.exp(-(((far - 0.42) / 0.17) ** 2) - ((height - 0.24 + 0.07 * unit[6]) / 0.14) ** 2)
    tone = skin[:, None, None] * (bright + (0.07 * unit[6] + 0.05 * unit[12]) * cheek)
    red = face.blush * cheek
    tone[1] -= 40 * red
    tone[2] -= 30 * red
    if face.beard:
        stubble = face.beard * _edge(np.minimum(height - 0.44 - 0.3 * (0.6 - far).clip(0) + 0.12, reach - 0.25), 0.15)
        tone += stubble * (0.5 * hair[:, None, None] + 0.2 * tone - tone)
    canvas.paint(head, tone, 1)
    for mark_x, mark_y, radius in face.marks:
        canvas.paint(_edge(radius - np.hypot(inner - mark_x, height - mark_y), pixel), 0.55 * skin)

    # hair in front
    fringe = face.hairline + 0.28 * (x - 0.5 * face.hair_parting) ** 2 - y
    sides = np.abs(x) - face.head_width + 0.05 + 0.12 * (y + 0.35).clip(0)
    front = np.minimum(np.maximum(fringe, np.minimum(sides, min(face.hair_length, 0.15) - y)), crown + 0.02)
    canvas.paint(_edge(front, pixel), hair[:, None, None] * (strands + 0.8 * light_x * x), 10)

    def window(top: float, bottom: float, half: float) -> tuple[slice, slice]:
        """Pixels that hold a box of the inner face, however it is rolled."""
        middle_y, middle_x = (top + bottom) / 2 + pitch - 0.02, yaw
        column = (middle_x * math.cos(roll) - middle_y * math.sin(roll)) / stretch + shift_x
        row = (middle_x * math.sin(roll) + middle_y * math.cos(roll)) / stretch + shift_y
        tilt, high = abs(math.sin(roll)), (bottom - top) / 2
        reach_x, reach_y = (half + tilt * high) / stretch, (high + tilt * half) / stretch
        spans = []
        for centre, radius in ((row, reach_y), (column, reach_x)):
            low, end = (centre - radius + 1) * size / 2, (centre + radius + 1) * size / 2
            spans.append(slice(max(0, int(low) - 1), min(size, int(end) + 2)))
        return spans[0], spans[1]

    # brows
    inner_end, outer_end = face.eye_x - 0.62 * face.brow_width, face.eye_x + 0.62 * face.brow_width
    at = window(face.brow_y - 0.3, face.brow_y + 0.2, outer_end + 0.1)
    u, v, side = far[at], height[at], inner[at] < 0
    along = (u - inner_end + 0.05 * unit[4]) / (outer_end - inner_end)
    t = along.clip(0, 1)
    arch = face.brow_y - face.brow_arch * 4 * t * (1 - t) + 0.03 * t
    arch += 0.11 * unit[4] * (1 - 0.4 * t) - 0.16 * unit[1] * (1 - t) * np.sqrt(1 - t) - 0.15 * unit[2] * t * np.sqrt(t)
    brow = face.brow_thickness * (1 - 0.55 * t) - np.hypot(v - arch, (along - t) * face.brow_width)
    if unit[4] or unit[1]:
        line = (0.025 - np.abs(u - 0.045)).clip(0) * 40 * (np.abs(v - face.brow_y - 0.05) < 0.09)
        crease = (0.02 - np.abs(v - face.brow_y + 0.2 - 0.1 * u)).clip(0) * 50 * (u < 0.35)
        canvas.shade(1 - 0.3 * unit[4] * line - 0.2 * unit[1] * crease, at)
    canvas.paint(_edge(brow, pixel) * 0.92, 0.8 * hair, np.where(side, 2, 3), at)

    # eyes
    at = window(face.eye_y - 0.2, face.eye_y + 0.25, face.eye_x + face.eye_width + 0.08)
    u, v, side = far[at] - face.eye_x, height[at] - face.eye_y, inner[at] < 0
    along = u / face.eye_width
    lens = 1 - along * along
    tilt = v - face.eye_tilt * along
    upper = face.eye_height * (1 - 0.3 * unit[7] - 0.1 * unit[4]) * (1 + 0.5 * unit[1] * unit[2])
    under = 0.75 * face.eye_height * (1 - 0.65 * unit[6]) * (1 - 0.5 * unit[7])
    opened = np.minimum(tilt + upper * lens, under * lens - tilt)
    socket = np.exp(-((u / 0.2) ** 2) - ((v + 0.03) / 0.13) ** 2)
    pouch = np.exp(-((u / 0.17) ** 2) - ((v - under - 0.05) / 0.03) ** 2)
    canvas.shade(1 - 0.16 * socket - (0.08 + 0.18 * unit[6] + 0.1 * unit[7]) * pouch, at)
    eye = _edge(opened, pixel)
    canvas.paint(eye, (228, 224, 220), np.where(side, 4, 5), at)
    ball_x = inner[at] - np.where(side, np.float32(-face.eye_x), np.float32(face.eye_x)) - 0.3 * yaw
    ball = np.hypot(ball_x, v + 0.1 * face.eye_height)
    radius = 0.078
    canvas.paint(eye * _edge(radius - ball, pixel), face.iris, None, at)
    canvas.paint(eye * _edge(0.45 * radius - ball, pixel), (12, 10, 10), None, at)
    glint = np.hypot(ball_x - math.copysign(0.03, light_x), v + 0.025)
    canvas.paint(eye * _edge(0.022 - glint, pixel) * 0.9, (250, 250, 250), None, at)
    lid = 0.014 - np.abs(tilt + upper * lens)
    canvas.paint(_edge(np.minimum(lid, 0.12 * lens), pixel) * 0.75, 0.3 * skin, None, at)

    # nose
    at = window(face.eye_y - 0.02, face.nose_y + 0.12, face.nose_width + 0.12)
    u, v, across = far[at], height[at], inner[at]
    tip = face.nose_y - 0.04 * unit[10]
    t = ((v - face.eye_y) / (tip - face.eye_y)).clip(0, 1.3)
    half = face.nose_bridge + (face.nose_width - face.nose_bridge) * t * t * t
    nose = np.minimum(np.minimum(half - u, (tip + 0.05 - v) - 0.35 * u * u / half), v - face.eye_y - 0.03)
    inside = _edge(nose, pixel)
    ridge = np.exp(-((u / 0.05) ** 2)) * np.minimum(t, 1)
    rim = np.exp(-((nose / 0.03) ** 2)) * t**2
    turned = math.copysign(1, light_x) * across / np.maximum(half, 0.03)
    canvas.shade(1 + 0.13 * ridge * (v < tip + 0.02) - 0.2 * rim + 0.08 * turned.clip(-1, 1) * inside * t, at)
    classes = canvas.parsing[at]
    np.copyto(classes, np.uint8(6), where=inside > 0.5)
    holes = 1 - np.hypot((u - 0.5 * face.nose_width) / (0.26 * face.nose_width), (v - tip - 0.01) / 0.025)
    canvas.paint(_edge(holes * 0.03, pixel) * 0.75, 0.35 * skin, None, at)

    # mouth
    gap = 0.045 * unit[25] + 0.15 * unit[26] + 0.02 * unit[10]
    half = face.mouth_width * (1 + 0.2 * unit[12] + 0.05 * unit[15] - 0.12 * unit[26] - 0.06 * unit[17])
    corner = 0.01 - 0.13 * unit[12] + 0.12 * unit[15] + 0.06 * unit[17] + 0.03 * unit[26]
    at = window(face.mouth_y - 0.3, face.mouth_y + 0.45, half + 0.25)
    u, v = far[at], height[at] - face.mouth_y
    along = (u / half).clip(0, 1.2)
    bow = 1 - along * along
    middle = corner * along * along - 0.035 * unit[17] - 0.025 * unit[10] + 0.02 * unit[12]
    open_up, open_down = 0.3 * gap, 0.7 * gap
    top_lip = (face.upper_lip + 0.015 * unit[10]) * (1 - 0.25 * unit[12])
    cupid = bow * (1 - 0.22 * np.exp(-((u / 0.05) ** 2)))
    lip_top = middle - open_up * bow - (0.04 * unit[10] + top_lip) * cupid
    gap_top = middle - (open_up + 0.04 * unit[10]) * bow
    gap_bottom = middle + open_down * bow
    lip_bottom = gap_bottom + face.lower_lip * (1 - 0.2 * unit[12] + 0.2 * unit[17]) * bow
    ends = half - u
    lips = np.array(face.lips, np.float32)
    fold_x = 0.24 + 0.45 * (v + 0.22).clip(0, 0.4) + 0.06 * unit[12]
    fold = np.exp(-(((u - fold_x) / 0.03) ** 2)) * ((v > -0.24) & (v < 0.12))
    under = np.exp(-(((v - face.lower_lip - open_down - 0.07) / 0.035) ** 2) - (u / 0.16) ** 2)
    dimple = np.exp(-(((u - 0.09) / 0.05) ** 2) - ((v - 0.28) / 0.06) ** 2)
    folded = 0.04 + 0.2 * unit[12] + 0.22 * unit[10] + 0.08 * unit[15]
    canvas.shade(1 - folded * fold - 0.12 * under - 0.25 * unit[17] * dimple, at)
    canvas.paint(_edge(np.minimum(np.minimum(v - lip_top, gap_top - v), ends), pixel), 0.88 * lips, 7, at)
    canvas.paint(_edge(np.minimum(np.minimum(v - gap_bottom, lip_bottom - v), ends), pixel), lips, 9, at)
    if gap > 0:
        inside = _edge(np.minimum(np.minimum(v - gap_top, gap_bottom - v), ends), pixel)
        canvas.paint(inside, (52, 16, 18), 8, at)
        teeth = np.minimum(gap_top + 0.045 - v, 0.8 * half - u)
        canvas.paint(inside * _edge(teeth, pixel), (226, 222, 212), None, at)
    else:
        seam = np.minimum(0.012 - np.abs(v - gap_bottom), ends)
        canvas.paint(_edge(seam, pixel) * 0.8, 0.35 * lips, None, at)

    seen = canvas.pixels * gain.astype(np.float32)[:, None, None]
    if noise:
        seen += (noise * 12**0.5) * (rng.random(seen.shape, np.float32) - 0.5)
    return np.ascontiguousarray(seen.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)), canvas.parsing
