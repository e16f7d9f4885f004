"""The Hallucinator and the four Siamese methods that it is plugged into; official checkpoints."""

from __future__ import annotations

import abc
import copy
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError, UserError, first_line
from repertory.nn.queue import Queue
from repertory.objectives.contrastive import check_temperature, info_nce, negative_cosine, nt_xent
from repertory.objectives.gathering import gathered, several_processes

Method = Literal["moco_v1", "moco_v2", "simclr", "simsiam"]
Backbone = Literal["resnet18", "resnet50", "convnet"]


# -- the plug-in -----------------------------------------------------------------------------------------------------


def extrapolate(q: Tensor, k: Tensor, ratio: float | Tensor) -> Tensor:
    """``(1 + r) q - r k``: ``q`` pushed away from ``k``, so that ``||e - k|| = (1 + r) ||q - k||``.

    Args:
        q, k: ``[B, d]``, features of two views.
        ratio: r, a number of at least 0.

    Raises:
        DataError: the shapes differ. ConfigError: r is negative, not finite, or not a single number.
    """
    if q.shape != k.shape or q.ndim != 2:
        raise DataError(f"q {list(q.shape)} and k {list(k.shape)}: two equal shapes [batch, features] are needed")
    if isinstance(ratio, Tensor) and ratio.ndim:
        raise ConfigError(f"ratio of shape {list(ratio.shape)}: one number for the whole batch is needed")
    r = float(ratio)
    if not 0 <= r < math.inf:
        raise ConfigError(f"ratio={r}: must be at least 0")
    return torch.add(q, q - k, alpha=r)


def hallucinate(q: Tensor, k: Tensor, ratio: float | Tensor, mlp: Callable[[Tensor], Tensor] | None) -> Tensor:
    """``q`` and one more positive made of it (Wu et al. 2023, section 3): usable in any method with two branches.

    Args:
        q, k: ``[B, d]``, features of two views; gradients flow into both.
        ratio: r of :func:`extrapolate`.
        mlp: from ``[B, 2 d]`` to ``[B, d]``, smooths ``q`` and the extrapolated feature into a new one; None: the
            extrapolated feature itself.

    Returns:
        ``[2 B, d]``: ``q`` unchanged, then the hallucinated features.
    """
    extrapolated = extrapolate(q, k, ratio)
    return torch.cat([q, extrapolated if mlp is None else mlp(torch.cat([q, extrapolated], dim=1))])


class Hallucinator(nn.Module):
    """Makes hallucinated positives during training; thrown away after it.

    Args:
        dim: d, length of the features.
        most: the ratio is drawn from U(0, most), once for the whole batch.
        smooth: with the MLP; without it the extrapolated features are taken as they are.
        times: positives made per feature, each with its own ratio; 1 in the paper.
    """

    def __init__(self, dim: int, most: float = 0.1, smooth: bool = True, times: int = 1) -> None:
        super().__init__()
        if most < 0 or times < 1:
            raise ConfigError(f"Hallucinator with ratios up to {most}, {times} times: at least 0, and 1, are needed")
        self.dim, self.most, self.times = dim, most, times
        wide = 2 * dim
        self.mlp = (
            nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, dim))
            if smooth
            else None
        )

    def forward(self, q: Tensor, k: Tensor, ratios: Sequence[float] | Tensor | None = None) -> Tensor:
        """``[(1 + times) B, d]``: q, then the hallucinated features, block by block.

        Args:
            q, k: ``[B, d]``.
            ratios: one per block; None: drawn from Python's generator.

        Raises:
            DataError: shapes that differ or are not ``[B, dim]``; features that are not finite.
        """
        if q.shape == k.shape and (q.ndim != 2 or q.shape[1] != self.dim):
            raise DataError(f"features {list(q.shape)}: this Hallucinator takes [batch, {self.dim}]")
        if not torch.compiler.is_compiling() and not (q.sum() + k.sum()).isfinite():
            raise DataError("features hold NaN or infinity: lower the learning rate, or look at the images")
        drawn = [random.uniform(0, self.most) for _ in range(self.times)] if ratios is None else ratios
        if len(drawn) != self.times:
            raise ConfigError(f"{len(drawn)} ratios for {self.times} hallucinations")
        made = [hallucinate(q, k, ratio, self.mlp) for ratio in drawn]
        return torch.cat([made[0], *(more[len(q) :] for more in made[1:])]) if self.times > 1 else made[0]


# -- encoders --------------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """Three convolutions of 16, 32, 64 channels with batch norm and pooling, and the mean: for small trials."""

    width = 64

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in widths:
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if wide != widths[-1] else []
            channels = wide
        self.body = nn.Sequential(*layers)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def build_backbone(name: Backbone, channels: int = 3, small_images: bool = True) -> Any:
    """An encoder ``[B, C, H, W]`` to ``[B, width]`` whose ``fc``, where a head goes, is the identity.

    Args:
        name: torchvision's ResNets, or the three convolutions.
        channels: C.
        small_images: a first convolution of 3 x 3 with stride 1 and no pooling, for images of some 32 pixels.
    """
    if name == "convnet":
        return ConvNet(channels)
    resnet: Any = getattr(torchvision.models, name)(weights=None)
    if small_images or channels != 3:
        kernel, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        resnet.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small_images:
        resnet.maxpool = nn.Identity()
    resnet.width, resnet.fc = resnet.fc.in_features, nn.Identity()
    return resnet


def without_head(encoder: nn.Module) -> nn.Module:
    """The same modules with the identity in place of ``fc``: ``[B, width]``."""
    bare = copy.copy(encoder)
    bare._modules = {**encoder._modules, "fc": nn.Identity()}
    return bare


def feature_map(encoder: Any, x: Tensor) -> Tensor:
    """What an encoder of :func:`build_backbone` has before it takes the mean: ``[B, width, h, w]``."""
    if isinstance(encoder, ConvNet):
        return encoder.body(x)
    x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(x))))
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        x = layer(x)
    return x


def linear_head(width: int, dim: int) -> nn.Module:
    """MoCo v1."""
    return nn.Linear(width, dim)


def mlp_head(width: int, dim: int) -> nn.Module:
    """MoCo v2 and SimCLR."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))


def simsiam_head(width: int, dim: int) -> nn.Module:
    """SimSiam's projector; the last bias is frozen, since a batch norm follows."""
    last = nn.Linear(width, dim)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        last, nn.BatchNorm1d(dim, affine=False),
    )  # fmt: skip


# -- the Siamese methods ---------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """What a loss compares.

    Attributes:
        queries: ``[m B, d]``: real features, then the hallucinated ones block by block.
        keys: ``[B, d]``.
    """

    queries: Tensor
    keys: Tensor


class Siamese(nn.Module, abc.ABC):
    """Two views, one encoder, and optionally a Hallucinator: what the four methods share.

    Args:
        encoder: from a view to ``[B, d]``, the head included.
        hallucinator: None gives the method as it was before.
    """

    def __init__(self, encoder: nn.Module, hallucinator: Hallucinator | None) -> None:
        super().__init__()
        self.encoder, self.hallucinator = encoder, hallucinator

    def forward(
        self, first: Tensor, second: Tensor, ratios: Sequence[float] | Tensor | None = None
    ) -> tuple[Pairs, ...]:
        """What the loss compares, of two views ``[B, C, H, W]``; ``ratios`` in place of random ones."""
        if first.shape != second.shape:
            raise DataError(f"views {list(first.shape)} and {list(second.shape)}: two of equal shape are needed")
        if self.training and len(first) < 2:
            raise DataError("a batch of 1 image: batch norm needs at least 2 in training")
        return self.pairs(first, second, ratios)

    @abc.abstractmethod
    def features(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """What the Hallucinator is given: ``q`` and ``k``, ``[B, d]`` each."""

    @abc.abstractmethod
    def pairs(self, first: Tensor, second: Tensor, ratios: Any) -> tuple[Pairs, ...]:
        """What :meth:`forward` gives, of views that were checked."""

    @abc.abstractmethod
    def loss(self, pairs: Sequence[Pairs]) -> Tensor:
        """The objective."""

    def advance(self, pairs: Sequence[Pairs]) -> None:
        """What follows a training step besides the optimiser's."""

    def hallucinated(self, q: Tensor, k: Tensor, ratios: Sequence[float] | Tensor | None) -> Tensor:
        """``[m B, d]``; without a Hallucinator ``q`` itself."""
        return q if self.hallucinator is None else self.hallucinator(q, k, ratios)


class MoCo(Siamese):
    """Momentum contrast (He et al. 2020; v2 has another head): keys of a moving average, negatives from a queue.

    Queries are extrapolated before they are made unit length, keys after it.

    Args:
        dim: d. queue_size: K. momentum: of the key encoder. temperature: T.
        enqueue: ``once`` each key, or (``official``) once per positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hallucinator: Hallucinator | None,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        enqueue: Literal["once", "official"] = "once",
    ) -> None:
        super().__init__(encoder, hallucinator)
        check_temperature(temperature)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = Queue(queue_size, dim)
        self.momentum, self.temperature, self.enqueue = momentum, temperature, enqueue

    def features(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if self.training:
                self.update_key_encoder()
            keys = self._keys(second)
        return self.encoder(first), keys

    def pairs(self, first: Tensor, second: Tensor, ratios: Any) -> tuple[Pairs, ...]:
        q, keys = self.features(first, second)
        return (Pairs(F.normalize(self.hallucinated(q, keys, ratios), dim=1), keys),)

    def update_key_encoder(self) -> None:
        """Moves its weights towards the encoder's; batch norm keeps statistics of its own."""
        ours, theirs = (tuple(part.parameters()) for part in (self.key_encoder, self.encoder))
        torch._foreach_lerp_(ours, theirs, 1 - self.momentum)

    def _keys(self, views: Tensor) -> Tensor:
        """Keys ``[B, d]``; on several devices each encodes images of all, lest batch norm tell who belongs to whom."""
        if not (self.training and several_processes()):
            return F.normalize(self.key_encoder(views), dim=1)
        (everywhere,) = gathered([views])
        order = torch.randperm(len(everywhere), device=views.device)
        dist.broadcast(order, 0)
        mine = slice(dist.get_rank() * len(views), (dist.get_rank() + 1) * len(views))
        (keys,) = gathered([F.normalize(self.key_encoder(everywhere[order[mine]]), dim=1)])
        return keys[order.argsort()[mine]]

    def loss(self, pairs: Sequence[Pairs]) -> Tensor:
        """InfoNCE against the queue."""
        (pair,) = pairs
        return info_nce(pair.queries, pair.keys, self.queue.keys, self.temperature)

    def copies(self) -> int:
        """How many places of the queue a key takes."""
        return 1 if self.enqueue == "once" or self.hallucinator is None else 1 + self.hallucinator.times

    def advance(self, pairs: Sequence[Pairs]) -> None:
        keys = pairs[0].keys.repeat(self.copies(), 1)
        self.queue.enqueue(gathered([keys])[0] if several_processes() else keys)


class SimCLR(Siamese):
    """SimCLR (Chen et al. 2020): both views in one pass, the rest of the batch as negatives.

    Args:
        temperature: tau.
        base_temperature, mask_duplicates: of :func:`~repertory.objectives.contrastive.nt_xent`; the official code has
            0.07, and takes the second copy of a key for a negative.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hallucinator: Hallucinator | None,
        temperature: float = 0.07,
        base_temperature: float | None = None,
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__(encoder, hallucinator)
        check_temperature(temperature)
        self.temperature, self.base_temperature, self.mask_duplicates = temperature, base_temperature, mask_duplicates

    def features(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.encoder(torch.cat([first, second])).chunk(2)
        return q, k

    def pairs(self, first: Tensor, second: Tensor, ratios: Any) -> tuple[Pairs, ...]:
        q, k = self.features(first, second)
        return (Pairs(self.hallucinated(q, k, ratios), k),)

    def loss(self, pairs: Sequence[Pairs]) -> Tensor:
        """NT-Xent over the batches of all devices."""
        (pair,) = pairs
        queries, keys = pair
        if several_processes():
            views = gathered([keys, *queries.view(-1, *keys.shape)])
            keys, queries = views[0], torch.cat(views[1:])
        return nt_xent(queries, keys, self.temperature, self.base_temperature, self.mask_duplicates)


class SimSiam(Siamese):
    """SimSiam (Chen and He 2021): predictions of one view's projection from the other's, without negatives.

    Args:
        dim: d, of projections, predictions and the Hallucinator.
        predictor_width: of the predictor's hidden layer.
    """

    def __init__(
        self, encoder: nn.Module, hallucinator: Hallucinator | None, dim: int = 512, predictor_width: int = 128
    ) -> None:
        super().__init__(encoder, hallucinator)
        if hallucinator is not None and hallucinator.dim != dim:
            raise ConfigError(f"SimSiam with dim {dim}, but a Hallucinator for {hallucinator.dim}: make them equal")
        self.predictor = nn.Sequential(
            nn.Linear(dim, predictor_width, bias=False), nn.BatchNorm1d(predictor_width), nn.ReLU(),
            nn.Linear(predictor_width, dim),
        )  # fmt: skip

    def features(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor(self.encoder(first)), self.predictor(self.encoder(second))

    def pairs(self, first: Tensor, second: Tensor, ratios: Any) -> tuple[Pairs, ...]:
        """Two of them, one for each direction; ``ratios``: those of the first direction, then of the second."""
        z1, z2 = self.encoder(first), self.encoder(second)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        r1, r2 = (None, None) if ratios is None else (ratios[: len(ratios) // 2], ratios[len(ratios) // 2 :])
        return (
            Pairs(self.hallucinated(p1, p2, r1), z2.detach()),
            Pairs(self.hallucinated(p2, p1, r2), z1.detach()),
        )

    def loss(self, pairs: Sequence[Pairs]) -> Tensor:
        """Half the sum of the negative cosines of both directions."""
        first, second = (negative_cosine(*pair) for pair in pairs)
        return (first + second) / 2


# -- official checkpoints --------------------------------------------------------------------------------------------

STATES = ("moco_state", "simclr_state", "simsiam_state")
RENAMED = (
    (r"^module\.", ""),
    (r"^generator\.fc(\d)\.", lambda m: f"hallucinator.mlp.{2 * (int(m[1]) - 1)}."),
    (r"^generator\.MLP\.", "hallucinator.mlp."),
    (r"^encoder_q\.", "encoder."),
    (r"^encoder_k\.", "key_encoder."),
    (r"^backbone\.", "encoder."),
    (r"^queue$", "queue.keys"),
    (r"^queue_ptr$", "queue.pointer"),
)  # fmt: skip


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the official names (``generator.fc1``, ``encoder_q``, ``queue`` ``[d, K]``) under ours.

    The Hallucinator's layers are there twice, as ``fc1..3`` and as ``MLP.0|2|4``; they are the same tensors.
    """
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)  # type: ignore[arg-type]
        made[name] = value.T.contiguous() if name == "queue.keys" else value
    return made


def official_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of a checkpoint, read from the names and shapes of :func:`official_state`.

    Raises:
        KeyError: a tensor that every checkpoint has is not there.
    """
    method = "simsiam" if "predictor.0.weight" in state else "moco" if "queue.keys" in state else "simclr"
    first = state["encoder.conv1.weight"]
    small = first.shape[-1] == 3
    heads = [int(m[1]) for key in state if (m := re.fullmatch(r"encoder\.fc\.(\d)\.weight", key))]
    last = 6 if method == "simsiam" else max(heads, default=-1)
    made = {
        "method": {"moco": "moco_v2" if heads else "moco_v1"}.get(method, method),
        "hallucinate": "full" if "hallucinator.mlp.0.weight" in state else "none",
        "backbone": "resnet50" if "encoder.layer1.0.conv3.weight" in state else "resnet18",
        "small_images": small,
        "dim": len(state["encoder.fc.weight" if last < 0 else f"encoder.fc.{last}.weight"]),
        "image_size": 32 if small else 224,
        "follow": "official",
    }
    if method == "moco":
        made["queue_size"] = len(state["queue.keys"])
    if method == "simsiam":
        made["predictor_width"] = len(state["predictor.0.weight"])
    return made


def read_official(path: str | Path) -> dict[str, Any]:
    """An official checkpoint (``{optimizer_state, moco_state, boxes, epoch}``), read without unpickling.

    Raises:
        UserError: no such file, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch refuses
        raise UserError(f"{path}: cannot be read safely: {first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {type(loaded).__name__}, expected a checkpoint")
    return loaded
