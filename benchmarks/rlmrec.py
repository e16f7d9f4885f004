"""RLMRec-Con's step and full ranking against the straightforward forms, which the official code has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from benchmarks.measure import compare
from repertory.systems.rlmrec import Bipartite, Chosen, Contrastive, LightGCN, RLMRec, Triples, of_rankings, rank

BATCH, LAYERS, DIM, WIDTH, KEEP = 4096, 3, 32, 1536, 0.8
WEIGHT, TEMPERATURE, REG = 1e-2, 0.2, 1e-7
KS = (5, 10, 20)


def _pairs(count: int, interactions: int) -> np.ndarray:
    random = np.random.default_rng(0)
    keys = random.choice(count * count, interactions, replace=False)
    return np.stack([keys // count, keys % count], axis=1)


def _batch(pairs: np.ndarray, count: int) -> Triples:
    random = np.random.default_rng(1)
    rows = pairs[random.choice(len(pairs), BATCH, replace=False)]
    return Triples(*(torch.from_numpy(z.copy()) for z in (*rows.T, random.integers(count, size=BATCH))))


class Straightforward(nn.Module):
    """LightGCN-Con term by term: a COO adjacency, all texts mapped, items with all their copies."""

    def __init__(self, model: RLMRec) -> None:
        super().__init__()
        self.user_embeds, self.item_embeds = model.backbone.user_embeds, model.backbone.item_embeds
        self.mlp, self.texts = model.alignment.mlp, model.alignment.texts
        graph = model.backbone.graph
        self.users, self.nodes = graph.users, graph.nodes
        self.places, self.values = torch.stack([graph.rows, graph.cols]), graph.adjacency

    def info_nce(self, anchors: Tensor, positives: Tensor, keys: Tensor) -> Tensor:
        a, p, k = (z / torch.sqrt(1e-8 + z.square().sum(-1, keepdim=True)) for z in (anchors, positives, keys))
        near = -(a * p / TEMPERATURE).sum(-1)
        return (near + torch.log(torch.exp(a @ k.T / TEMPERATURE).sum(-1))).sum()

    def forward(self, batch: Triples, kept: Tensor) -> Tensor:
        size = (self.nodes, self.nodes)
        adjacency = torch.sparse_coo_tensor(
            self.places[:, kept], self.values[kept], size, check_invariants=False
        ).coalesce()
        layers = [torch.cat([self.user_embeds, self.item_embeds])]
        for _ in range(LAYERS):
            layers.append(torch.sparse.mm(adjacency, layers[-1]))
        made = sum(layers)
        users, items = made[: self.users], made[self.users :]
        u, v, n = users[batch.users], items[batch.positives], items[batch.negatives]
        bpr = nn.functional.softplus((u * n).sum(-1) - (u * v).sum(-1)).sum() / len(batch)
        of_users, of_items = self.mlp(self.texts[: self.users]), self.mlp(self.texts[self.users :])
        m, p, q = of_users[batch.users], of_items[batch.positives], of_items[batch.negatives]
        kd = self.info_nce(u, m, of_users) + self.info_nce(v, p, p) + self.info_nce(n, q, q)
        reg = sum(parameter.norm(2).square() for parameter in self.parameters())
        return bpr + WEIGHT / len(batch) * kd + REG * reg


def training(form: str, count: int, interactions: int) -> Callable[[], float]:
    torch.manual_seed(0)
    pairs = _pairs(count, interactions)
    graph = Bipartite(count, count, torch.from_numpy(pairs))
    backbone = LightGCN(graph, DIM, LAYERS, KEEP)
    texts = torch.randn(2 * count, WIDTH)
    model = RLMRec(backbone, Contrastive(texts, count, DIM, WEIGHT, TEMPERATURE), REG)
    batch = _batch(pairs, count)
    if form == "straightforward":
        module = Straightforward(model)

        def loss() -> Tensor:
            return module(batch, torch.rand(len(graph)) < KEEP)
    else:

        def loss() -> Tensor:
            return torch.stack(list(model(batch).values())).sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=form == "ours")

    def run() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return run


def evaluation(form: str, count: int, interactions: int) -> Callable[[], dict[str, float]]:
    random = np.random.default_rng(0)
    pairs = _pairs(count, interactions)
    order = random.permutation(len(pairs))
    train, test = pairs[order[: -len(pairs) // 5]], pairs[order[-len(pairs) // 5 :]]
    users, items = (torch.from_numpy(random.normal(size=(count, DIM)).astype(np.float32)) for _ in range(2))
    if form == "ours":
        chosen, relevant = Chosen(train, count, count), Chosen(test, count, count)
        asked = np.flatnonzero(relevant.sizes)

        def run() -> dict[str, float]:
            found, _ = rank(users, items, chosen, asked, max(KS))
            made = of_rankings(relevant.has(asked[:, None], found), relevant.sizes[asked], KS)
            return {name: float(made[name].mean(0)[-1]) for name in ("recall", "ndcg")}

        return run
    matrix = scipy.sparse.csr_matrix((np.ones(len(train)), tuple(train.T)), shape=(count, count))
    truth: dict[int, list[int]] = {}
    for user, item in test:
        truth.setdefault(int(user), []).append(int(item))
    tested = sorted(truth)

    def straightforward() -> dict[str, float]:
        totals = {"recall": np.zeros(len(KS)), "ndcg": np.zeros(len(KS))}
        for start in range(0, len(tested), 1024):
            part = tested[start : start + 1024]
            masks = torch.from_numpy(np.stack([matrix[user].toarray().reshape(-1) for user in part])).float()
            scores = users[part] @ items.T * (1 - masks) - 1e8 * masks
            top = torch.topk(scores, max(KS)).indices.numpy()
            for user, row in zip(part, top, strict=True):
                right = np.array([item in truth[user] for item in row]).astype(float)
                for n, k in enumerate(KS):
                    best = np.zeros(k)
                    best[: min(k, len(truth[user]))] = 1
                    gains = 1 / np.log2(np.arange(2, k + 2))
                    totals["recall"][n] += right[:k].sum() / len(truth[user])
                    totals["ndcg"][n] += (right[:k] * gains).sum() / (best * gains).sum()
        return {name: float(values[-1] / len(tested)) for name, values in totals.items()}

    return straightforward


def main() -> None:
    for count, interactions in ((4000, 60_000), (10_000, 150_000)):
        sizes = {"users": count, "items": count, "interactions": interactions}
        compare(
            "rlmrec",
            f"one step of LightGCN-Con, {count:,} users and items",
            partial(training, "ours", count, interactions),
            partial(training, "straightforward", count, interactions),
            {**sizes, "batch": BATCH, "text_width": WIDTH},
            repeats=5,
        )
        compare(
            "rlmrec",
            f"full ranking with Recall and NDCG, {count:,} users and items",
            partial(evaluation, "ours", count, interactions),
            partial(evaluation, "straightforward", count, interactions),
            {**sizes, "k": max(KS)},
            repeats=5,
        )


if __name__ == "__main__":
    main()
