"""Fixed position encodings: sines and cosines of absolute and of relative patch positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.errors import ConfigError


def frequencies(width: int) -> Tensor:
    """Angular frequencies ``10000^(-i / (width / 4))`` of a table of ``width`` channels, ``[width / 4]`` float32."""
    if width % 4:
        raise ConfigError(f"a 2-D sin-cos table needs a width that is a multiple of 4, not {width}")
    quarter = width // 4
    return (10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)).float()


def sincos(position: Tensor, omega: Tensor) -> Tensor:
    """``[...]`` positions to ``[..., 2 * len(omega)]``: all sines, then all cosines."""
    angle = position[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_2d(grid: int | tuple[int, int], width: int) -> Tensor:
    """Table ``[rows * columns, width]`` in the channel order of MAE (He et al. 2022): column half, then row half."""
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    omega = frequencies(width).double()
    row, column = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return torch.cat([sincos(column.flatten(), omega), sincos(row.flatten(), omega)], dim=-1).float()


def _cells(grid: int, indices: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres ``(row + 0.5, column + 0.5)`` of the wanted cells of a square grid."""
    if indices is None:
        indices = torch.arange(grid * grid, device=like.device)[None]
    return (indices // grid).to(like.dtype) + 0.5, (indices % grid).to(like.dtype) + 0.5


def _placed(
    rel: Tensor, grid: int, indices: Tensor | None, scale: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells of a second crop in the coordinates of the first."""
    row, column = _cells(grid, indices, rel)
    delta_row, delta_column, mirrored, mirrored_delta = (rel[:, i, None] for i in (0, 1, -2, -1))
    row, column = row * scale[0], column * scale[1]
    column = torch.where(mirrored > 0.5, mirrored_delta * grid - column, delta_column * grid + column)
    return row + delta_row * grid - 0.5, column - 0.5


def relative_easy(rel: Tensor, grid: int, omega: Tensor, indices: Tensor | None = None) -> Tensor:
    """Positions of the patches of a crop in the frame of another crop of the same size (CheXWorld, layout model).

    ``rel`` ``[B, 4]`` is (row shift, column shift, 1 if one of the two is mirrored, column shift when mirrored), in
    units of the crop; ``grid`` is the number of patches per side; ``omega`` comes from :func:`frequencies`;
    ``indices`` ``[B, K]`` picks patches (default all ``grid²``). Returns ``[B, K, 4 * len(omega)]``, row half first:
    the opposite channel order of :func:`sincos_2d`, as in the published model.
    """
    return torch.cat([sincos(p, omega) for p in _placed(rel, grid, indices)], dim=-1)


def relative(rel: Tensor, grid: int, omega: Tensor, indices: Tensor | None = None) -> Tensor:
    """Like :func:`relative_easy` for crops of different size.

    ``rel`` ``[B, 6]`` is (row shift, column shift, height ratio, width ratio, mirrored, mirrored column shift).
    Returns ``[B, K, 8 * len(omega)]``: row, column, then the encoded ``10 log`` of both ratios.
    """
    height, width = rel[:, 2, None], rel[:, 3, None]
    row, column = _placed(rel, grid, indices, (height, width))
    sizes = [(10 * ratio.log()).expand_as(row) for ratio in (height, width)]
    return torch.cat([sincos(p, omega) for p in (row, column, *sizes)], dim=-1)


def fourier(x: Tensor, max_frequency: float = 128.0, bands: int = 32) -> Tensor:
    """``[...]`` to ``[..., 2 * bands + 1]``: sines, cosines at ``bands`` frequencies, and ``x`` itself.

    The frequencies are pi times 1 to ``max_frequency / 2``, evenly spaced (Jaegle et al. 2021, Perceiver).
    """
    scales = torch.linspace(1.0, max_frequency / 2, bands, device=x.device, dtype=x.dtype)
    angle = x[..., None] * scales * math.pi
    return torch.cat([angle.sin(), angle.cos(), x[..., None]], dim=-1)
