"""A backbone with an alignment, and the names that both have in official checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from repertory.systems.rlmrec.alignment import Alignment, Triples
from repertory.systems.rlmrec.backbones import Backbone, Draws


class RLMRec(nn.Module):
    """Embeddings of users and items, trained by what was chosen and, with an alignment, by texts (Ren et al. 2024).

    Args:
        backbone: propagates embeddings over the graph.
        alignment: brings them together with texts; ``Alignment()`` is the backbone alone.
        reg_weight: of the squares of all parameters, used or not.
    """

    def __init__(self, backbone: Backbone, alignment: Alignment, reg_weight: float) -> None:
        super().__init__()
        self.backbone, self.alignment, self.reg_weight = backbone, alignment, reg_weight

    def forward(self, batch: Triples, draws: Draws | None = None) -> dict[str, Tensor]:
        """The weighted terms of the loss, to be summed: bpr (AutoCF: rec), cl, kd or recon, reg."""
        draws = draws or Draws()
        nodes, masked = self.alignment.enter(self.backbone.nodes(), draws.masked)
        embeddings, terms = self.backbone(nodes, batch, draws)
        norms = torch.stack(torch._foreach_norm(list(self.parameters())))
        return terms | self.alignment.terms(embeddings, batch, masked) | {"reg": self.reg_weight * norms.square().sum()}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Of users [U, D] and items [I, D], as inference has them: all edges, no mask, no noise."""
        made = self.backbone.propagate(self.backbone.nodes())
        return made[: self.backbone.graph.users], made[self.backbone.graph.users :]


# -- official names ------------------------------------------------------------------------------------------------

OFFICIAL = (
    (r"(user|item)_embeds(\.weight)?", r"backbone.\1_embeds"),
    (r"(user|item)_intent", r"backbone.\1_intent"),
    (r"gcnLayers\.(\d+)\.W", r"backbone.unused.\1"),
    (r"gtLayers\.(\d+)\.qTrans", r"backbone.transformer.\1.query"),
    (r"gtLayers\.(\d+)\.kTrans", r"backbone.transformer.\1.key"),
    (r"gtLayers\.(\d+)\.vTrans", r"backbone.transformer.\1.value"),
    (r"(gene_)?masker\.mask_token", "alignment.mask_token"),
    (r"mlp\.([02])\.(weight|bias)", r"alignment.mlp.\1.\2"),
)
"""Names in official checkpoints, and here."""


def from_official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under the names of ``RLMRec``.

    Raises:
        KeyError: a name that no official checkpoint has.
    """
    return {official_key(name): value for name, value in state.items()}


def official_key(name: str) -> str:
    """What the parameter with an official ``name`` is called here.

    Raises:
        KeyError: no official checkpoint has that name.
    """
    for pattern, ours in OFFICIAL:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    raise KeyError(name)
