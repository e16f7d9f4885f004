"""What memory is compared with: the attention of DeiT in its plain form."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class AttentionLayer(nn.Module):
    """Multi-head self-attention that holds its map of all pairs of tokens, ``[B, L, D]`` to ``[B, L, D]``."""

    def __init__(self, width: int, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        made: Tensor = self.proj(rearrange(attention @ v, "b h l d -> b l (h d)"))
        return made
