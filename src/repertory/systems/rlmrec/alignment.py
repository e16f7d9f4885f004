"""How embeddings are brought together with texts: not at all, by contrast (Con), or by reconstruction (Gen)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from repertory.systems.rlmrec.objective import Distinct, info_nce, reconstruction


class Triples(NamedTuple):
    """A batch: numbers of users, of items that they chose and of items that they did not [B]."""

    users: Tensor
    positives: Tensor
    negatives: Tensor

    def __len__(self) -> int:
        return len(self.users)


class Alignment(nn.Module):
    """None: the backbone alone. A subclass adds terms, and may change what goes into the backbone."""

    def enter(self, nodes: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the backbone starts from [N, d], and the numbers of the nodes that are masked in it."""
        return nodes, torch.empty(0, dtype=torch.long, device=nodes.device)

    def terms(self, embeddings: Tensor, batch: Triples, masked: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the loss, of the backbone's embeddings [N, D]."""
        return {}


class _WithTexts(Alignment):
    """Frozen vectors of texts [N, d_t], users first, and a mapping between their space and that of embeddings."""

    texts: Tensor

    def __init__(self, texts: Tensor, users: int, sizes: tuple[int, int], weight: float, temperature: float) -> None:
        super().__init__()
        self.users, self.weight, self.temperature = users, weight, temperature
        first, last = sizes
        self.mlp = nn.Sequential(
            nn.Linear(first, (first + last) // 2), nn.LeakyReLU(), nn.Linear((first + last) // 2, last)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.register_buffer("texts", texts, persistent=False)


class Contrastive(_WithTexts):
    """RLMRec-Con: texts are mapped to the space of embeddings, and each is nearest to its own (section 4.2).

    Args:
        texts: [N, d_t]. users: U. width: D of the backbone's embeddings.
        weight, temperature: kd_weight and kd_temperature of the official code.
        negatives: whether negative items have a term of their own (all backbones but AutoCF).
    """

    def __init__(
        self, texts: Tensor, users: int, width: int, weight: float, temperature: float, negatives: bool = True
    ) -> None:
        super().__init__(texts, users, (texts.shape[1], width), weight, temperature)
        self.negatives = negatives

    def terms(self, embeddings: Tensor, batch: Triples, masked: Tensor) -> dict[str, Tensor]:
        # each distinct item is mapped once, and stands for its copies by its count
        chosen = [Distinct(numbers + self.users) for numbers in batch[1 : 2 + self.negatives]]
        items = torch.unique(torch.cat([items.numbers for items in chosen]))
        mapped = torch.cat([self.mlp(self.texts[: self.users]), self.mlp(self.texts[items])])
        users = Distinct(batch.users)
        total = info_nce(
            embeddings[users.numbers], mapped[users.numbers], mapped[: self.users], self.temperature, users.counts
        )
        for of in chosen:
            own = mapped[self.users + torch.searchsorted(items, of.numbers)]
            total = total + info_nce(embeddings[of.numbers], own, own, self.temperature, of.counts, of.counts)
        return {"kd": self.weight / len(batch) * total}


class Generative(_WithTexts):
    """RLMRec-Gen: masked nodes have to tell their text from that of the other masked ones (section 4.3).

    Args:
        texts: [N, d_t]. users: U. dim: d of the initial embeddings. width: D of the backbone's.
        ratio: share of the nodes that are masked in a step.
        weight, temperature: recon_weight and re_temperature of the official code.
    """

    def __init__(
        self, texts: Tensor, users: int, dim: int, width: int, ratio: float, weight: float, temperature: float
    ) -> None:
        super().__init__(texts, users, (width, texts.shape[1]), weight, temperature)
        self.ratio = ratio
        self.mask_token = nn.Parameter(torch.zeros(1, dim))

    def enter(self, nodes: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if masked is None:
            masked = torch.randperm(len(nodes), device=nodes.device)[: max(int(self.ratio * len(nodes)), 1)]
        return nodes.index_copy(0, masked, self.mask_token.expand(len(masked), -1)), masked

    def terms(self, embeddings: Tensor, batch: Triples, masked: Tensor) -> dict[str, Tensor]:
        mapped = self.mlp(embeddings[masked])
        return {"recon": self.weight * reconstruction(mapped, self.texts[masked], self.temperature)}
