"""Hallucinator: losses against the straightforward form, and what the plug-in adds to a step, on one core.

Run with ``python -m benchmarks.hallucinator``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import compare, record, seconds
from repertory.data.transforms.contrastive import CentreCrop, ContrastiveView, RandomCrop
from repertory.nn.queue import Queue
from repertory.objectives.contrastive import info_nce, nt_xent
from repertory.systems.hallucinator.model import Hallucinator, SimCLR, build_backbone, hallucinate, mlp_head

BATCH, QUEUE, DIM, TEMPERATURE = 512, 65536, 128, 0.2


def _features() -> tuple[Tensor, Tensor, Hallucinator]:
    torch.manual_seed(0)
    q, k = torch.randn(2, BATCH, DIM)
    return q.requires_grad_(), F.normalize(k, dim=1), Hallucinator(DIM)


def queue_ours() -> Callable[[], float]:
    (q, k, hallucinator), queue = _features(), Queue(QUEUE, DIM)

    def step() -> float:
        queries = F.normalize(hallucinator(q, k, [0.05]), dim=1)
        loss = info_nce(queries, k, queue.keys, TEMPERATURE)
        queue.enqueue(k)
        loss.backward()
        return loss.item()

    return step


def queue_straightforward() -> Callable[[], float]:
    """A copy of the queue for each step, every key twice, and the matrix of logits."""
    q, k, hallucinator = _features()
    queue, pointer = F.normalize(torch.randn(DIM, QUEUE), dim=0), torch.zeros(1, dtype=torch.int64)

    def step() -> float:
        queries = F.normalize(hallucinate(q, k, 0.05, hallucinator.mlp), dim=1)
        keys = torch.cat([k, k])
        positive = torch.einsum("nc,nc->n", queries, keys).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", queries, queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1)
        logits = logits / TEMPERATURE
        labels = torch.zeros(len(logits), dtype=torch.long)
        start = int(pointer)
        queue[:, start : start + len(keys)] = keys.T
        pointer[0] = (start + len(keys)) % QUEUE
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss.item()

    return step


def batch_ours() -> Callable[[], float]:
    q, k, hallucinator = _features()

    def step() -> float:
        loss = nt_xent(hallucinator(q, k, [0.05]), k, TEMPERATURE, 0.07)
        loss.backward()
        return loss.item()

    return step


def batch_straightforward() -> Callable[[], float]:
    """All features, each key twice, against all: a matrix of 4 B x 4 B with masks of the same size."""
    q, k, hallucinator = _features()
    n = 4 * BATCH

    def step() -> float:
        features = torch.cat([hallucinate(q, k, 0.05, hallucinator.mlp), k, k])
        features = F.normalize(features, dim=1)
        logits = torch.matmul(features, features.T) / TEMPERATURE
        logits = logits - logits.max(dim=1, keepdim=True)[0].detach()
        others = torch.ones(n, n) - torch.eye(n)
        partners = torch.roll(torch.eye(n), n // 2, 1)
        log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
        loss = -(TEMPERATURE / 0.07) * ((partners * log_probability).sum(1) / partners.sum(1)).mean()
        loss.backward()
        return loss.item()

    return step


def views_ours() -> Callable[[], list[Tensor]]:
    views = ContrastiveView(CentreCrop(32)), ContrastiveView(RandomCrop(32))
    pictures = _pictures()
    return lambda: [view(picture) for picture in pictures for view in views]


def views_straightforward() -> Callable[[], list[Tensor]]:
    """torchvision's transforms, crops anywhere in both."""
    from torchvision.transforms import v2

    view = v2.Compose([
        v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    pictures = _pictures()
    return lambda: [view(picture) for picture in pictures for _ in range(2)]


def _pictures() -> list:
    from PIL import Image

    torch.manual_seed(0)
    return [Image.fromarray(p.numpy()) for p in torch.randint(0, 256, (256, 32, 32, 3), dtype=torch.uint8)]


def plugged(used: bool) -> Callable[[], float]:
    """A step of SimCLR with a ResNet-18 on 64 images of 32 pixels."""
    torch.manual_seed(0)
    encoder = build_backbone("resnet18")
    encoder.fc = mlp_head(encoder.width, DIM)
    model: nn.Module = SimCLR(encoder, Hallucinator(DIM) if used else None, TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    views = torch.randn(2, 64, 3, 32, 32)

    def step() -> float:
        loss = model.loss(model(*views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    torch.set_num_threads(1)
    sizes = {"batch": BATCH, "features": DIM, "dtype": "float32"}
    compare("hallucinator", "loss against the queue", queue_ours, queue_straightforward, {**sizes, "queue": QUEUE})
    compare("hallucinator", "loss within the batch", batch_ours, batch_straightforward, sizes)
    compare("hallucinator", "two views of 256 images", views_ours, views_straightforward, {"side": 32})
    times = seconds({name: plugged(name == "with") for name in ("with", "without")}, repeats=3)
    record(
        "hallucinator",
        "what the Hallucinator adds to a step of ResNet-18",
        {
            "ratio": round(times["without"] / times["with"], 3),
            "cpu_seconds": {name: float(f"{value:.3g}") for name, value in times.items()},
            "sizes": {"batch": 64, "side": 32, "method": "simclr", "device": "cpu, 1 thread"},
        },
    )


if __name__ == "__main__":
    main()
