"""A training step against two straightforward forms, and the memory of a graph of 100,000 nodes.

Run with ``python -m benchmarks.erase``. The dense form holds the membership of every node as C diagonal matrices
[C, n, n]; the masked form selects each class's rows; both propagate with a dense adjacency.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GATConv

from benchmarks.measure import _peak, compare, record
from repertory.systems.erase.attention import with_self_loops
from repertory.systems.erase.labels import PseudoLabels, column_normalised, denoised
from repertory.systems.erase.model import GraphAttentionEncoder
from repertory.systems.erase.objective import CodingRateReduction

NODES, CLASSES, WIDTH, FEATURES = 2000, 10, 128, 64
LARGE, LARGE_WIDTH = 100_000, 512


def graph(degree: int, nodes: int = NODES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, edges in both directions, labels and training nodes; three of four edges within a class."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, CLASSES, nodes))
    i = random.integers(0, nodes, nodes * degree // 2)
    near = np.clip(i + random.integers(-nodes // CLASSES // 2, nodes // CLASSES // 2, len(i)), 0, nodes - 1)
    j = np.where(random.random(len(i)) < 0.75, near, random.integers(0, nodes, len(i)))
    kept = i != j
    both = np.concatenate([np.stack([i, j])[:, kept], np.stack([j, i])[:, kept]], axis=1)
    edges = torch.from_numpy(np.unique(both, axis=1))
    x = F.normalize(torch.from_numpy(random.random((nodes, FEATURES)).astype(np.float32)), p=1)
    return x, edges, torch.from_numpy(labels), torch.from_numpy(np.sort(random.permutation(nodes)[: nodes // 10]))


def ours(degree: int, encodes: bool = True) -> Callable[[], Any]:
    x, edges, labels, train = graph(degree)
    pseudo = PseudoLabels(edges, NODES, labels[train], train, CLASSES, 0.6, 0.6, 5)
    reduction = CodingRateReduction(0.05)
    return _step(x, edges, encodes, lambda z: reduction(z, pseudo(z.detach()).argmax(1), CLASSES).loss, False)


def official(form: str, degree: int, encodes: bool = True) -> Callable[[], Any]:
    x, edges, labels, train = graph(degree)
    adjacency = column_normalised(edges, NODES).to_dense()
    clean = denoised(labels[train], train, edges, NODES, CLASSES, 5, 0.6)
    return _step(x, edges, encodes, lambda z: straightforward(z, adjacency, clean, train, form), True)


def _step(
    x: Tensor, edges: Tensor, encodes: bool, loss: Callable[[Tensor], Tensor], official: bool
) -> Callable[[], Any]:
    """Forward, loss, backward and Adam; without encoder, forward and backward from given vectors."""
    torch.manual_seed(0)
    encoder = GraphAttentionEncoder(FEATURES, 256, WIDTH)
    if not official:
        edges = with_self_loops(edges, len(x), len(x))  # once for all steps
    else:
        encoder.layers = torch.nn.ModuleList([GATConv(FEATURES, 32, 8), GATConv(256, WIDTH)])
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3, weight_decay=5e-4, amsgrad=True)
    given = encoder(x, edges).detach().requires_grad_()

    def whole() -> None:
        optimizer.zero_grad()
        loss(encoder(x, edges)).backward()
        optimizer.step()

    def rest() -> None:
        given.grad = None
        loss(given).backward()

    return whole if encodes else rest


def straightforward(z: Tensor, adjacency: Tensor, clean: Tensor, train: Tensor, form: str) -> Tensor:
    """Prototypes through NumPy, dense propagation, one determinant a class."""
    n, p = z.shape
    vectors, said = z.detach().numpy(), clean[train].argmax(1).numpy()
    means = torch.from_numpy(np.stack([vectors[train.numpy()[said == k]].mean(axis=0) for k in range(CLASSES)]))
    similar = F.cosine_similarity(z.detach()[:, None], means[None], dim=-1).abs()
    scores = torch.softmax(0.6 * clean + 0.4 * similar, dim=1)
    for _ in range(5):
        scores = 0.4 * (adjacency @ scores) + 0.6 * scores
    labels, eye = scores.argmax(1), torch.eye(p)
    rate = 0.5 * torch.logdet(eye + p / (n * 0.05) * z.T @ z)
    class_rate = torch.zeros(())
    if form == "dense":
        membership = np.zeros((CLASSES, n, n))
        membership[labels.numpy(), np.arange(n), np.arange(n)] = 1.0
        pi = torch.tensor(membership, dtype=torch.float32)
        for k in range(CLASSES):
            size = torch.trace(pi[k]) + 1e-8
            class_rate = class_rate + size / (2 * n) * torch.logdet(eye + p / (size * 0.05) * z.T @ pi[k] @ z)
    else:
        for k in range(CLASSES):
            members = z[labels == k]
            size = len(members) + 1e-8
            class_rate = class_rate + size / (2 * n) * torch.logdet(eye + p / (size * 0.05) * members.T @ members)
    return class_rate - 2 * rate


def large(pipe: Any) -> None:
    """In a fresh process: two epochs of the sampled form on 100,000 nodes, embedding included; its peak in MB."""
    from torch_geometric.data import Data

    from repertory.systems.erase.system import ERASE

    torch.set_num_threads(1)
    x, edges, labels, train = graph(12, LARGE)
    order = np.random.default_rng(1).permutation(LARGE)
    masks = {"train_mask": train, "val_mask": order[~np.isin(order, train)][:2000]}
    masks["test_mask"] = np.setdiff1d(order, np.concatenate([masks["train_mask"], masks["val_mask"]]))
    graph_ = Data(x=x, edge_index=edges, y=labels, **{name: torch.as_tensor(v) for name, v in masks.items()})
    del x, edges
    config = ERASE.Config.build("ogbn-arxiv", dim=LARGE_WIDTH, times=10, epochs=2)
    start = _peak(reset=True)
    system = ERASE(config).fit(graph_)
    system.embed(graph_)
    pipe.send((start / 1024, _peak() / 1024))


def main() -> None:
    torch.set_num_threads(1)
    for degree in (6, 24):
        edges = graph(degree)[1].shape[1]
        sizes = {"nodes": NODES, "edges": edges, "classes": CLASSES, "p": WIDTH, "hidden": 256, "heads": 8}
        for form in ("dense", "masked"):
            compare("erase", f"training step against the {form} form, {degree} edges a node", partial(ours, degree),
                    partial(official, form, degree), sizes, repeats=7)  # fmt: skip
        if degree == 6:
            compare("erase", "labels and loss without encoder, against the dense form", partial(ours, degree, False),
                    partial(official, "dense", degree, False), sizes, repeats=9)  # fmt: skip
    memory()


def memory() -> None:
    """Records what a fit of two epochs and the embedding of all nodes take."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=large, args=(far,))
    process.start()
    before, peak = near.recv()
    process.join()
    record("erase", "training on 100,000 nodes", {
        "megabytes": {"before": round(before), "peak": round(peak)},
        "sizes": {"nodes": LARGE, "edges a node": 12, "features": FEATURES, "p": LARGE_WIDTH, "form": "sampled",
                  "device": "cpu, 1 thread"},
    })  # fmt: skip


if __name__ == "__main__":
    main()
