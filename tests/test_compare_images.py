"""The systems for images beside each other, on a folder of anybody's pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from repertory.cli import main

CANDIDATES = (
    "chexworld?preset=tiny", "fmae_iat?preset=tiny&task=none", "fsfm?preset=tiny&task=none", "hallucinator?preset=tiny",
    "umd?preset=tiny", "vim?preset=tiny", "timm:test_resnet?pretrained=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, grey and colour, of several sizes."""
    path, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        name, high, wide = ("ring", "stripe")[i % 2], 20 + i % 3, 24 + i % 5
        y, x = np.mgrid[-1 : 1 : 1j * high, -1 : 1 : 1j * wide]
        shape = np.hypot(x, y) if i % 2 else x + random.uniform(-0.3, 0.3)
        grey = 127 * (1 + np.sin(9 * shape)) + random.normal(0, 20, x.shape)
        colour = i % 4 < 2
        pixels = np.stack([grey, grey * 0.7, 255 - grey], axis=-1) if colour else grey
        (path / name).mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / name / f"{i:02d}.{'jpg' if i % 3 else 'png'}")
    return path


def test_any_folder_of_pictures_will_do(folder, tmp_path):
    command = ["compare", *CANDIDATES, "--data", f"images:{folder}"]
    assert main([*command, "--label", "label", "--budget", "2", "--seeds", "1", "--out", str(tmp_path / "c.json")]) == 0
    made = json.loads((tmp_path / "c.json").read_text())
    shown = {row["candidate"] for row in made["rows"]}
    assert shown == set(CANDIDATES)
