"""What the claim compares with: a graph attention network that believes its labels."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric.nn.models import GAT

from repertory.data import Splits
from repertory.data.graph import Nodes
from repertory.systems.erase.data import Graph, as_positions, classes_of, numbered


def cross_entropy_accuracy(
    splits: Splits[Nodes], given: np.ndarray, hidden: int = 64, heads: int = 8, lr: float = 0.01, epochs: int = 100,
    validate_every: int = 1,
) -> float:  # fmt: skip
    """Test accuracy of PyG's two-layer GAT trained by cross-entropy; the epoch with the best validation is kept.

    Args:
        splits: whose training labels are not looked at. given: [m] numbers of the training nodes' labels, noisy.
    """
    classes = classes_of(splits)
    graph = Graph(splits.all, row_normalise=True)
    model = GAT(graph.x.shape[1], hidden, 2, len(classes), dropout=0.5, heads=heads)
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=5e-4)
    train, val, test = (as_positions(part) for part in (splits.train, splits.val, splits.test))
    truth = {name: torch.from_numpy(numbered(getattr(splits, name), classes, "")) for name in ("val", "test")}
    targets, best, kept = torch.from_numpy(given), -1.0, copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(graph.x, graph.edge_index)[train], targets).backward()
        optimizer.step()
        if (epoch + 1) % validate_every == 0:
            model.eval()
            with torch.inference_mode():
                accuracy = float((model(graph.x, graph.edge_index)[val].argmax(1) == truth["val"]).float().mean())
            if accuracy > best:
                best, kept = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.eval()
    with torch.inference_mode():
        return float((model(graph.x, graph.edge_index)[test].argmax(1) == truth["test"]).float().mean())
