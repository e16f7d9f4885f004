"""Vision Mamba: bidirectional state spaces for images (Zhu et al., ICML 2024)."""

from repertory.systems.vim.model import Mixer, VisionMamba, check_finite
from repertory.systems.vim.official import load_official, options, read_shape, resize_positions
from repertory.systems.vim.scan import selective_scan
from repertory.systems.vim.system import Vim

__all__ = [
    "Mixer", "Vim", "VisionMamba", "check_finite", "load_official", "options", "read_shape", "resize_positions",
    "selective_scan",
]  # fmt: skip
