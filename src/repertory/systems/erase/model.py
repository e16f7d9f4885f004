"""The encoder, a graph attention network, with what reads classes off its vectors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch_geometric import EdgeIndex

from repertory.errors import ConfigError, UserError
from repertory.systems.erase.attention import SparseGATConv, SparseGATv2Conv, with_self_loops
from repertory.systems.erase.labels import Form
from repertory.systems.erase.sampler import Block, Neighbours

Convolution = Literal["GAT", "GATv2"]


class GraphAttentionEncoder(nn.Module):
    """Graph attention (PyG's layers) with L1-normalised rows between layers and at the end (section 3.3).

    Args:
        features: width of a node's features. hidden: of all layers but the last, over all heads. dim: p, of a vector.
        heads: concatenated in all layers but the last, which has one. layers: at least 2.
        convolution: ``GAT`` or ``GATv2``.
        dropout: of the input of all layers but the last.
        form: ``full``: leaky ReLU, rows normalised after the first layer and at the end, then ReLU. ``sampled``: ReLU,
            rows normalised after every layer; at the end in training L1, L2, ReLU, in ``embed`` L2 alone.

    Raises:
        ConfigError: heads do not divide hidden, or less than two layers.
    """

    def __init__(
        self, features: int, hidden: int = 256, dim: int = 512, heads: int = 8, layers: int = 2,
        convolution: Convolution = "GAT", dropout: float = 0.5, form: Form = "full",
    ) -> None:  # fmt: skip
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"heads={heads} do not divide hidden={hidden}: {hidden // heads * heads} would be left")
        if layers < 2:
            raise ConfigError(f"layers={layers}: at least 2 are needed")
        self.features, self.width, self.dropout, self.form = features, dim, dropout, form
        make = {"GAT": SparseGATConv, "GATv2": SparseGATv2Conv}[convolution]
        widths = [features] + [hidden] * (layers - 2)
        self.layers = nn.ModuleList(make(w, hidden // heads, heads, add_self_loops=False) for w in widths)
        self.layers.append(make(hidden, dim, 1, add_self_loops=False))

    def forward(self, x: Tensor, edges: Tensor | Sequence[Block]) -> Tensor:
        """Vectors [n, dim] of nodes with features [n, features].

        Args:
            edges: [2, E] of the whole graph (those of ``with_self_loops`` are taken as they are), or blocks from the
                outermost hop to the nodes asked for, with ``x`` of the first block's sources.
        """
        if isinstance(edges, Tensor) and not isinstance(edges, EdgeIndex):
            edges = with_self_loops(edges, len(x), len(x))
        for i, layer in enumerate(self.layers):
            x = F.dropout(x, self.dropout, self.training and i < len(self.layers) - 1)
            if isinstance(edges, Tensor):
                x = layer(x, edges)
            else:
                x = _through(layer, x, edges[i])
            x = self._between(x, i)
        if self.form == "sampled":
            x = F.normalize(F.normalize(x, p=1), p=2)
        else:
            x = F.normalize(x, p=1)
        return x.relu()

    def _between(self, x: Tensor, i: int) -> Tensor:
        """What follows layer i, unless it is the last."""
        if i == len(self.layers) - 1:
            return x
        if self.form == "sampled":
            return F.normalize(x.relu(), p=1)
        x = F.leaky_relu(x, 0.01)
        return F.normalize(x, p=1) if i == 0 else x

    @torch.inference_mode()
    def embed(self, x: Tensor, neighbours: Neighbours, batch_size: int = 4096) -> Tensor:
        """Vectors [n, dim] of all nodes without dropout: layer by layer, ``batch_size`` nodes with all neighbours."""
        nodes = np.arange(len(x))
        for i, layer in enumerate(self.layers):
            parts = []
            for start in range(0, len(x), batch_size):
                block = neighbours.block(nodes[start : start + batch_size])
                made = _through(layer, x[block.sources.to(x.device)], block)
                parts.append(self._between(made, i))
            x = torch.cat(parts)
        return F.normalize(x, p=2) if self.form == "sampled" else F.normalize(x, p=1).relu()


def _through(layer: nn.Module, x: Tensor, block: Block) -> Tensor:
    """A layer from a block's sources [s, width] to its targets."""
    edges = with_self_loops(block.edges.to(x.device), len(x), block.targets)
    made: Tensor = layer((x, x[: block.targets]), edges)
    return made


class Erase(nn.Module):
    """The encoder; prototypes of the classes and a logistic regression on unit vectors, both of the end of the fit."""

    prototypes: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: GraphAttentionEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("prototypes", torch.zeros(classes, encoder.width))
        self.register_buffer("weight", torch.zeros(classes, encoder.width))
        self.register_buffer("bias", torch.zeros(classes))

    def logits(self, z: Tensor) -> Tensor:
        """Of the logistic regression [n, classes], for vectors [n, dim]."""
        return F.linear(F.normalize(z), self.weight, self.bias)


def regression(z: Tensor, labels: Tensor, classes: int, most_steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Weights [classes, p] and biases [classes] of scikit-learn's logistic regression on unit vectors (L-BFGS).

    A class that no label names gets the bias -inf; where all labels name one class, that is the answer.

    Args:
        z: [m, p]. labels: [m].
    """
    weight, bias = z.new_zeros(classes, z.shape[1]), z.new_full((classes,), -torch.inf)
    present = labels.unique()
    if len(present) == 1:
        bias[present] = 0
        return weight, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is as good
        fitted = LogisticRegression(max_iter=most_steps).fit(F.normalize(z).cpu().numpy(), labels.cpu().numpy())
    slope, offset = torch.from_numpy(fitted.coef_).to(z), torch.from_numpy(fitted.intercept_).to(z)
    if len(present) == 2:  # of the second class alone
        slope, offset = torch.cat([torch.zeros_like(slope), slope]), torch.cat([torch.zeros_like(offset), offset])
    weight[present], bias[present] = slope, offset
    return weight, bias


def from_official_keys(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the encoder from the official names; PyG's older ``lin_src`` is read as ``lin``.

    Raises:
        UserError: there is no graph attention layer among them.
    """
    found = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    found = {
        name.replace(".lin_src.", ".lin."): value for name, value in found.items() if ".lin_dst." not in name
    }  # fmt: skip
    if "layers.0.bias" not in found or not {"layers.0.att_src", "layers.0.att"} & set(found):
        raise UserError(
            f"no graph attention network of ERASE: no 'layers.0.att_src' among {', '.join(list(found)[:4])}"
        )
    return {name: value for name, value in found.items() if name.startswith("layers.")}


def shape_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The encoder's arguments, read off its weights."""
    convolution: Convolution = "GATv2" if "layers.0.att" in weights else "GAT"
    layers = 1 + max(int(name.split(".")[1]) for name in weights)
    first, attention = ("lin_l", "att") if convolution == "GATv2" else ("lin", "att_src")
    _, heads, width = weights[f"layers.0.{attention}"].shape
    return {
        "features": weights[f"layers.0.{first}.weight"].shape[1], "hidden": heads * width, "heads": heads,
        "dim": weights[f"layers.{layers - 1}.{attention}"].shape[2], "layers": layers, "convolution": convolution,
    }  # fmt: skip
