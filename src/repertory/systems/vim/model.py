"""Vision Mamba: patches as a sequence that state spaces read in both directions (Zhu et al., ICML 2024).

Modules and parameters have the official names, so that an official state dict is this model's state dict.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath, RotaryEmbeddingCat, apply_rot_embed_cat, lecun_normal_
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError, nearest
from repertory.systems.vim.scan import Backend, selective_scan

BimambaType = Literal["none", "v1", "v2"]
Placement = Literal["middle", "head", "double", "random", "none"]
Pool = Literal["mean", "last", "max"]

SIZES: dict[str, dict[str, Any]] = {"tiny": {"width": 192}, "small": {"width": 384}, "base": {"width": 768}}
"""All of depth 24 with 16 states: about 7, 26 and 98 million parameters."""


class Mixer(nn.Module):
    """The bidirectional Mamba mixer (section 3.3; figure 2 of the paper), ``[B, L, D]`` to ``[B, L, D]``.

    Args:
        width: D; channels inside are ``E = expand * D``.
        d_state: N, the states of a channel.
        d_conv: steps that the causal depthwise convolution looks at.
        expand: E / D.
        dt_rank: rank of the step sizes; None: ceil(D / 16).
        bimamba_type: ``none`` reads forward alone; ``v1`` scans the same tensors twice with an A of its own backward;
            ``v2`` has convolution and projections of its own backward, too.
        if_divide_out: halve the sum of the two directions (``v2`` alone).
        init_layer_scale: start of the factor ``gamma`` of each channel of the output; None: no such factor.
        symmetric_init: start the backward step sizes of ``v2`` as the forward ones; else as any linear layer, its bias
            at 0, as the official code does.
        scan: see :func:`~repertory.systems.vim.scan.selective_scan`.
    """

    A_log: nn.Parameter
    A_b_log: nn.Parameter
    dt_proj: nn.Linear
    dt_proj_b: nn.Linear

    def __init__(
        self,
        width: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bimamba_type: BimambaType = "v2",
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        symmetric_init: bool = False,
        scan: Backend = "auto",
    ) -> None:
        super().__init__()
        rank = math.ceil(width / 16) if dt_rank is None else dt_rank
        if min(width, d_state, d_conv, expand, rank) < 1:
            raise ConfigError(
                f"mixer: width {width}, d_state {d_state}, d_conv {d_conv}, expand {expand}, dt_rank {rank}: at least 1"
            )
        if bimamba_type not in ("none", "v1", "v2"):
            raise ConfigError(f"unknown bimamba_type '{bimamba_type}'{nearest(bimamba_type, ('none', 'v1', 'v2'))}")
        channels = expand * width
        self.rank, self.bimamba_type, self.if_divide_out, self.scan = rank, bimamba_type, if_divide_out, scan
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        for mark in ("", "_b") if bimamba_type == "v2" else ("",):
            conv = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)
            setattr(self, f"conv1d{mark}", conv)
            setattr(self, f"x_proj{mark}", nn.Linear(channels, rank + 2 * d_state, bias=False))
            setattr(self, f"dt_proj{mark}", nn.Linear(rank, channels))
            setattr(self, f"D{mark}", nn.Parameter(torch.ones(channels)))
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        for name in ("A_log",) if bimamba_type == "none" else ("A_log", "A_b_log"):
            rates = torch.arange(1, d_state + 1, dtype=torch.float32).log()
            setattr(self, name, nn.Parameter(rates.repeat(channels, 1)))
        self.out_proj = nn.Linear(channels, width, bias=False)
        self.gamma = None if init_layer_scale is None else nn.Parameter(torch.full((width,), float(init_layer_scale)))
        start_steps(self.dt_proj)
        if bimamba_type == "v2" and symmetric_init:
            start_steps(self.dt_proj_b)
        elif bimamba_type == "v2":
            nn.init.zeros_(self.dt_proj_b.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = rearrange(self.in_proj(x), "b l e -> b e l").chunk(2, dim=1)
        directions, gates, rates = [self._coefficients(inner, "")], [gate], [self.A_log]
        if self.bimamba_type != "none":
            backward = self._coefficients(inner.flip(-1), "_b") if self.bimamba_type == "v2" else flipped(directions[0])
            directions.append(backward)
            gates.append(gate.flip(-1))
            rates.append(self.A_b_log)
        # the directions are groups of channels of one scan
        u, delta, B, C, D, bias = (
            torch.cat(part, dim=min(1, part[0].ndim - 1)) for part in zip(*directions, strict=True)
        )
        y, _ = selective_scan(
            u, delta, -torch.cat(rates).float().exp(), B, C, D.float(), torch.cat(gates, dim=1), bias.float(),
            delta_softplus=True, backend=self.scan,
        )  # fmt: skip
        if self.bimamba_type != "none":
            there, back = y.chunk(2, dim=1)
            y = there + back.flip(-1)
            if self.if_divide_out and self.bimamba_type == "v2":
                y = y / 2
        made: Tensor = self.out_proj(rearrange(y, "b e l -> b l e"))
        return made if self.gamma is None else made * self.gamma

    def _coefficients(self, inner: Tensor, mark: str) -> tuple[Tensor, ...]:
        """Of one direction: u and delta ``[B, E, L]``, B and C ``[B, 1, N, L]``, D and the bias of delta ``[E]``."""
        conv, x_proj, dt_proj, D = (getattr(self, f"{name}{mark}") for name in ("conv1d", "x_proj", "dt_proj", "D"))
        u = F.silu(conv(inner)[..., : inner.shape[-1]])
        n = (x_proj.out_features - self.rank) // 2
        low, B, C = F.linear(u.mT, x_proj.weight).split([self.rank, n, n], dim=-1)
        return u, F.linear(low, dt_proj.weight).mT, B.mT[:, None], C.mT[:, None], D, dt_proj.bias


def flipped(coefficients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same coefficients from last step to first; those of channels alone stay as they are."""
    return tuple(t if t.ndim == 1 else t.flip(-1) for t in coefficients)


def start_steps(layer: nn.Linear, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> None:
    """Mamba's start of step sizes: after softplus, log-uniform from ``low`` to ``high`` and at least ``floor``."""
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    steps = torch.empty_like(layer.bias).uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
    with torch.no_grad():
        layer.bias.copy_(steps + (-(-steps).expm1()).log())  # the inverse of softplus


class Layer(nn.Module):
    """Add, norm, mixer: the stream is summed first, and what the mixer says is added by the next layer."""

    def __init__(self, mixer: Mixer, norm: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.mixer, self.norm, self.drop_path = mixer, norm, DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None, precise: bool) -> tuple[Tensor, Tensor]:
        residual = added(hidden, residual, self.drop_path, precise)
        return self.mixer(normed(self.norm, residual)), residual


def added(hidden: Tensor, residual: Tensor | None, drop_path: nn.Module, precise: bool) -> Tensor:
    """``residual + drop_path(hidden)``, kept in float32 (or float64) if ``precise``."""
    total = hidden if residual is None else residual + drop_path(hidden)
    return total.to(torch.promote_types(total.dtype, torch.float32)) if precise else total


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm in the dtype of its weights, whatever the stream's is."""
    weight: Any = norm.weight
    made: Tensor = norm(x.to(weight.dtype))
    return made


class VisionMamba(nn.Module):
    """Vim: images ``[B, C, S, S]`` to class logits ``[B, classes]``, features ``[B, D]``, or maps ``[B, D, h, w]``.

    The defaults are Vim-Ti/16. Patches go from left to right and top to bottom, ``(S - patch) // stride + 1`` a side;
    the table of positions is added after the class token was put in.

    Args:
        image_size: S, the only side that is accepted.
        patch_size, stride: of the patches, in pixels; stride None: the patch. Less: they overlap (the paper's "+").
        in_channels: C.
        classes: 0: no head.
        width, depth: D, and how many layers.
        d_state, d_conv, expand, bimamba_type, if_divide_out: see :class:`Mixer`; so are init_layer_scale,
            symmetric_init, scan.
        if_bidirectional: layers work in pairs, the second on the flipped sequence, and are summed.
        class_token: ``middle`` (after half of the patches), ``head``, ``double`` (first and last, their mean),
            ``random`` (anew for each batch in training, in the middle otherwise), or ``none``.
        pool: without a class token: the ``mean`` of the tokens, the ``last`` one, or the ``max``, of logits.
        positions: whether there is a learned table of positions.
        rope: rotate patch tokens by their row and column before each layer (Su et al. 2021), off in the paper.
        rms_norm: RMSNorm, else LayerNorm.
        residual_in_fp32: keep the stream in float32 under autocast.
        drop_path: rate of the last layer; it rises linearly, the first two have 0.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_channels: int = 3,
        classes: int = 1000,
        width: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bimamba_type: BimambaType = "v2",
        if_bidirectional: bool = False,
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        class_token: Placement = "middle",
        pool: Pool = "mean",
        positions: bool = True,
        rope: bool = False,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
        drop_path: float = 0.0,
        symmetric_init: bool = False,
        scan: Backend = "auto",
    ) -> None:
        super().__init__()
        stride = patch_size if stride is None else stride
        self.side = grid_side(image_size, patch_size, stride)
        for name, value, valid in (
            ("class_token", class_token, ("middle", "head", "double", "random", "none")),
            ("pool", pool, ("mean", "last", "max")),
        ):
            if value not in valid:
                raise ConfigError(f"unknown {name} '{value}'{nearest(value, valid)}")
        if if_bidirectional and depth % 2:
            raise ConfigError(f"if_bidirectional pairs the layers: depth {depth} is not even")
        self.image_size, self.patch_size, self.stride, self.width = image_size, patch_size, stride, width
        self.class_token, self.pool, self.if_bidirectional = class_token, pool, if_bidirectional
        self.residual_in_fp32 = residual_in_fp32
        self.shape: dict[str, Any] = {
            "in_channels": in_channels, "patch_size": patch_size, "width": width, "depth": depth, "d_state": d_state,
            "d_conv": d_conv, "expand": expand, "bimamba_type": bimamba_type, "if_bidirectional": if_bidirectional,
            "if_divide_out": if_divide_out, "init_layer_scale": init_layer_scale, "class_token": class_token,
            "pool": pool, "positions": positions, "rope": rope, "rms_norm": rms_norm,
        }  # fmt: skip
        """What another model must share with this one to take its weights."""

        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, width, patch_size, stride)
        marks: dict[str, tuple[str, ...]] = {"double": ("_head", "_tail"), "none": ()}
        self._tokens = [f"cls_token{mark}" for mark in marks.get(class_token, ("",))]
        for name in self._tokens:
            setattr(self, name, nn.Parameter(torch.zeros(1, 1, width)))
        length = self.side**2 + len(self._tokens)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, width)) if positions else None
        self.rope = (
            RotaryEmbeddingCat(width, in_pixels=False, feat_shape=[self.side] * 2, ref_feat_shape=[14, 14])
            if rope
            else None
        )
        rates = [0.0, *torch.linspace(0, drop_path, depth).tolist()]
        make_norm = nn.RMSNorm if rms_norm else nn.LayerNorm
        self.layers = nn.ModuleList(
            Layer(
                Mixer(
                    width, d_state, d_conv, expand, None, bimamba_type, if_divide_out, init_layer_scale, symmetric_init,
                    scan,
                ),
                make_norm(width, eps=1e-5),
                rates[i],
            )
            for i in range(depth)
        )  # fmt: skip
        self.drop_path = DropPath(drop_path)
        self.norm_f = make_norm(width, eps=1e-5)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        proj: Any = self.patch_embed.proj
        lecun_normal_(proj.weight)
        nn.init.zeros_(proj.bias)
        for name in (*self._tokens, *(["pos_embed"] if self.pos_embed is not None else [])):
            nn.init.trunc_normal_(getattr(self, name), std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        layers: Any = self.layers
        for layer in layers:
            weight = layer.mixer.out_proj.weight
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            weight.data /= math.sqrt(len(self.layers))

    # -- tokens ----------------------------------------------------------------------------------------------------

    @property
    def places(self) -> tuple[int, ...]:
        """Where the class tokens stand among the tokens, outside training."""
        return class_places(self.class_token, self.side**2)

    def embed(self, images: Tensor, places: tuple[int, ...] | None = None) -> Tensor:
        """Tokens before the first layer, ``[B, M + len(places), D]``, class tokens at ``places``.

        Raises:
            DataError: images of another side, another number of channels, or not of floats.
        """
        proj: Any = self.patch_embed.proj
        if images.ndim != 4 or images.shape[1] != proj.in_channels or not images.is_floating_point():
            raise DataError(
                f"images of shape {list(images.shape)} and {images.dtype}: needed are floats "
                f"[B, {proj.in_channels}, S, S]"
            )
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise DataError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels; this model takes {self.image_size} x "
                f"{self.image_size}: resize them, or the table of positions (fit with encoder=run:RUN and image_size="
                f"{images.shape[-1]})"
            )
        x = rearrange(proj(images), "b d h w -> b (h w) d")
        for name, place in zip(self._tokens, self.places if places is None else places, strict=True):
            token = getattr(self, name).expand(len(x), -1, -1).to(x.dtype)
            x = torch.cat([x[:, :place], token, x[:, place:]], dim=1)
        return x if self.pos_embed is None else x + self.pos_embed

    def tokens(self, images: Tensor, places: tuple[int, ...] | None = None) -> Tensor:
        """Tokens after the last norm, ``[B, M + len(places), D]``, class tokens among them."""
        places = self.places if places is None else places
        hidden, residual = self.embed(images, places), None
        if self.if_bidirectional:
            pairs = zip(self.layers[::2], self.layers[1::2], strict=True)
            for forward, backward in pairs:
                hidden = self._rotated(hidden, places)
                turned = None if residual is None else residual.flip(1)
                there, stream = forward(hidden, residual, self.residual_in_fp32)
                back, flipped = backward(hidden.flip(1), turned, self.residual_in_fp32)
                hidden, residual = there + back.flip(1), stream + flipped.flip(1)
        else:
            for layer in self.layers:
                hidden, residual = layer(self._rotated(hidden, places), residual, self.residual_in_fp32)
        return normed(self.norm_f, added(hidden, residual, self.drop_path, self.residual_in_fp32))

    def _rotated(self, x: Tensor, places: tuple[int, ...]) -> Tensor:
        if self.rope is None:
            return x
        rows = self._patch_rows(places, x.device)
        turned = apply_rot_embed_cat(x[:, rows], self.rope.get_embed())
        return x.index_copy(1, rows, turned.to(x.dtype))

    def _patch_rows(self, places: tuple[int, ...], device: torch.device) -> Tensor:
        """Indices of the patches among the tokens, ``[M]``."""
        rows = [i for i in range(self.side**2 + len(places)) if i not in places]
        return torch.tensor(rows, device=device)

    # -- what is made of them ----------------------------------------------------------------------------------------

    def features(self, images: Tensor, place: int | None = None) -> Tensor:
        """``[B, D]``: the class token, the mean of both, or pooled tokens; for ``pool="max"`` all, ``[B, M, D]``.

        Max pooling is of logits, so there are no features of an image with it, only of its tokens.

        Args:
            place: of a class token whose placement is ``random``, 0 to M; None: drawn in training, else the middle.
        """
        places = self.places
        if self.class_token == "random":
            if place is None and self.training:
                place = int(torch.randint(0, self.side**2 + 1, (1,)))
            places = places if place is None else (place,)
        tokens = self.tokens(images, places)
        if places:
            return tokens[:, list(places)].mean(1) if len(places) > 1 else tokens[:, places[0]]
        return {"mean": tokens.mean(1), "last": tokens[:, -1], "max": tokens}[self.pool]

    def vectors(self, images: Tensor) -> Tensor:
        """``[B, D]``, one vector an image.

        Raises:
            ConfigError: the model pools by the maximum of logits, so that it has none.
        """
        self.check_vectors()
        return self.features(images)

    def check_vectors(self) -> None:
        """Raises what ``vectors`` raises."""
        if self.class_token == "none" and self.pool == "max":
            raise ConfigError(
                "pool=max takes the maximum of logits, so that an image has no vector of its own: use pool=mean or "
                "last, a class token, or the tokens (encoder.dense)"
            )

    def dense(self, images: Tensor) -> Tensor:
        """The patches' tokens as a map, ``[B, D, h, w]``."""
        tokens = self.tokens(images)
        patches = tokens[:, self._patch_rows(self.places, tokens.device)]
        return rearrange(patches, "b (h w) d -> b d h w", h=self.side)

    def logits(self, features: Tensor) -> Tensor:
        """``[B, classes]`` from :meth:`features`."""
        logits: Tensor = self.head(features)
        return logits.amax(1) if logits.ndim == 3 else logits

    def forward(self, images: Tensor, place: int | None = None) -> Tensor:
        """Class logits ``[B, classes]``; ``place`` as in :meth:`features`."""
        return self.logits(self.features(images, place))

    # -- for optimisers ----------------------------------------------------------------------------------------------

    decay_rates: bool = False
    """Whether ``A_log`` is decayed, as by the official optimiser, which does not look at the flag that forbids it."""

    def no_weight_decay(self) -> set[str]:
        """Names of weights that are not decayed besides those with one axis."""
        spared = {"pos_embed", *self._tokens}
        if not self.decay_rates:
            spared |= {name for name, _ in self.named_parameters() if name.endswith(("A_log", "A_b_log"))}
        return spared

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for rates that decay with depth, as in timm."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }


def grid_side(image_size: int, patch_size: int, stride: int) -> int:
    """Patches along a side.

    Raises:
        ConfigError: the image is smaller than a patch.
    """
    if image_size < patch_size or min(patch_size, stride) < 1:
        raise ConfigError(f"image side {image_size}, patch {patch_size}, stride {stride}: a patch does not fit")
    return (image_size - patch_size) // stride + 1


def class_places(class_token: Placement, patches: int) -> tuple[int, ...]:
    """Indices of the class tokens among ``patches`` patches and themselves, for each placement outside training."""
    return {"none": (), "head": (0,), "double": (0, patches + 1)}.get(class_token, (patches // 2,))


def check_finite(model: nn.Module) -> None:
    """Raises a :class:`DataError` that names the first weight with a NaN or an infinity, and so its layer."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DataError(f"{name} is not finite: the training diverged; lower lr, or clip gradients")
