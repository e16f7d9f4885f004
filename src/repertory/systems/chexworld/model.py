"""CheXWorld (Yue et al. 2025): encoder, its moving average, a conditioned predictor, and the fine-tuned classifier."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError, nearest
from repertory.nn.ema import update_ema
from repertory.nn.positions import fourier, frequencies, relative, relative_easy, sincos_2d
from repertory.nn.vit import (
    Init,
    VisionTransformer,
    blocks,
    check_indices,
    initialise,
    last_block,
    resize_state,
    tokens_at,
)

Conditioning = Literal["feat", "feat_res", "feat_silu", "token", "token_bare"]
TargetNorm = Literal["avg_ln", "in_avg_ln"]

FOURIER_WIDTH = 65
"""Numbers per augmentation parameter in the ``token`` conditioning: 32 sines, 32 cosines and the value."""


def _policy_net(kind: str, width: int, policy_dim: int) -> nn.Sequential:
    if kind == "token":
        return nn.Sequential(nn.Linear(policy_dim * FOURIER_WIDTH, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
    if kind == "token_bare":
        return nn.Sequential(nn.Linear(policy_dim, width), nn.SiLU(), nn.Linear(width, width))
    activation = nn.SiLU if kind == "feat_silu" else nn.ReLU
    return nn.Sequential(
        nn.Linear(width + policy_dim, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, width),
    )


class Predictor(nn.Module):
    """Predicts latents of target patches from context tokens, told how the two images differ (section 3 of the paper).

    ``conditioning`` says how the augmentation parameters enter: ``feat`` mixes them into every query by an MLP
    (``feat_res`` adds a residual, ``feat_silu`` uses SiLU), ``token`` and ``token_bare`` append one token, with and
    without a Fourier encoding. ``general_position`` takes 6 numbers for crops of different size instead of 4;
    ``unify_embed`` gives context tokens the channel order of the queries' positions, which otherwise differs.
    """

    predictor_pos_embed: Tensor
    omega: Tensor

    def __init__(
        self,
        grid: int = 14,
        encoder_width: int = 768,
        width: int = 384,
        depth: int = 6,
        heads: int = 12,
        policy_dim: int = 5,
        conditioning: Conditioning = "feat",
        general_position: bool = False,
        unify_embed: bool = False,
        init: Init = "trunc_normal",
    ) -> None:
        super().__init__()
        if conditioning not in get_args(Conditioning):
            raise ConfigError(f"unknown conditioning '{conditioning}'{nearest(conditioning, get_args(Conditioning))}")
        self.grid, self.policy_dim, self.conditioning = grid, policy_dim, conditioning
        self.predictor_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("omega", frequencies(width), persistent=False)
        unmoved = torch.zeros(1, 4)
        table = relative_easy(unmoved, grid, self.omega) if unify_embed else sincos_2d(grid, width)[None]
        self.register_buffer("predictor_pos_embed", table)
        self.predictor_pos_mlp = nn.Linear(2 * width, width) if general_position else None
        self.policy_net = _policy_net(conditioning, width, policy_dim)
        self.predictor_blocks = blocks(width, depth, heads)
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, encoder_width)
        initialise(self, init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def same_position(self) -> Tensor:
        """The relative position ``[4]`` (or ``[6]``) of a crop to itself."""
        values = [0.0] * 4 if self.predictor_pos_mlp is None else [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
        return self.mask_token.new_tensor(values)

    def query_positions(self, indices: Tensor, rel: Tensor | None = None) -> Tensor:
        """Positions ``[B, T, width]`` of target patches ``[B, T]`` in the frame of the context's crop.

        ``rel`` ``[B, 4]`` or ``[B, 6]`` as in :func:`repertory.nn.positions.relative_easy` and
        :func:`~repertory.nn.positions.relative`; None means the same crop.
        """
        if rel is None:
            rel = self.same_position.expand(len(indices), -1)
        if self.predictor_pos_mlp is None:
            return relative_easy(rel, self.grid, self.omega, indices)
        return self.predictor_pos_mlp(relative(rel, self.grid, self.omega, indices))

    def forward(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        policy: Tensor,
        rel: Tensor | None = None,
    ) -> Tensor:
        """Latents ``[R * B, T, encoder_width]`` of the target patches.

        ``context`` ``[B, K, encoder_width]`` with ``context_indices`` ``[B, K]`` is embedded once and serves R
        predictions: ``target_indices`` ``[R * B, T]``, ``policy`` ``[R * B, policy_dim]`` and ``rel`` run over R
        (outer) and B (inner).

        Raises:
            DataError: the width of ``policy`` is not ``policy_dim``, or an index lies outside the grid.
        """
        if policy.shape[-1] != self.policy_dim:
            raise DataError(f"{policy.shape[-1]} augmentation parameters where policy_dim is {self.policy_dim}")
        for indices in (context_indices, target_indices):
            check_indices(indices, (self.grid, self.grid))
        place = tokens_at(self.predictor_pos_embed.expand(len(context), -1, -1), context_indices)
        seen = self.predictor_embed(context) + place
        seen = repeat(seen, "b k d -> (r b) k d", r=len(target_indices) // len(context))
        queries = self.mask_token + self.query_positions(target_indices, rel)
        asked = queries.shape[1]
        if self.conditioning.startswith("token"):
            # the token stands between context and queries, so that the queries are the last ones; order is no input
            coded = fourier(policy).flatten(1) if self.conditioning == "token" else policy
            sequence = [seen, self.policy_net(coded)[:, None], queries]
        else:
            mixed = self.policy_net(torch.cat([queries, repeat(policy, "b p -> b t p", t=asked)], dim=-1))
            sequence = [seen, queries + mixed if self.conditioning == "feat_res" else mixed]
        x = torch.cat([part.to(queries.dtype) for part in sequence], dim=1)
        for block in self.predictor_blocks[:-1]:
            x = block(x)
        x = last_block(self.predictor_blocks[-1], x, asked)
        return self.predictor_proj(self.predictor_norm(x))


class Latents(NamedTuple):
    """``predictions`` ``[4, B, T, D]``: views 1 from 1, 2 from 2, 2 from 1, 1 from 2. ``targets`` ``[2, B, T, D]``."""

    predictions: Tensor
    targets: Tensor


class WorldModel(nn.Module):
    """The world model of two crops of one radiograph (``iwm_dual_easy``; ``iwm_dual`` with a general position).

    The context encoder sees masked, augmented crops; the target encoder, its moving average, sees whole clean crops.
    ``target_norm`` averages the last ``target_last_k`` layers, each instance-normalised first with ``in_avg_ln``,
    and applies LayerNorm without affine. ``iwm_disable`` and ``rel_pos_disable`` withhold from the predictor the
    augmentation parameters (zeros) and the relative position (that of the same crop); ``reverse_pred`` predicts
    augmented from clean crops.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        target_last_k: int = 1,
        target_norm: TargetNorm = "avg_ln",
        iwm_disable: bool = False,
        rel_pos_disable: bool = False,
        reverse_pred: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= target_last_k <= len(encoder.blocks):
            raise ConfigError(f"target_last_k is {target_last_k}, the encoder has {len(encoder.blocks)} layers")
        if target_norm not in get_args(TargetNorm):
            raise ConfigError(f"unknown target_norm '{target_norm}'{nearest(target_norm, get_args(TargetNorm))}")
        self.encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.predictor = predictor
        self.target_last_k, self.target_norm = target_last_k, target_norm
        self.iwm_disable, self.rel_pos_disable, self.reverse_pred = iwm_disable, rel_pos_disable, reverse_pred

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.target_encoder.eval()
        return self

    @torch.no_grad()
    def target(self, images: Tensor, indices: Tensor) -> Tensor:
        """Normalised latents ``[B, T, D]`` of whole images at ``indices`` ``[B, T]``."""
        if self.target_last_k == 1:
            layers = [self.target_encoder(images)]
        else:
            layers = self.target_encoder(images, layer_results=True)[-self.target_last_k :]
        if self.target_norm == "in_avg_ln":
            layers = [F.instance_norm(layer.float().mT).mT for layer in layers]
        latents = torch.stack(layers).mean(0)
        return F.layer_norm(tokens_at(latents, indices).float(), latents.shape[-1:])

    def forward(
        self,
        images: Tensor,
        augmented: Tensor,
        policy: Tensor,
        rel: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        shuffle: Tensor | None = None,
    ) -> Latents:
        """Predictions and targets of a batch of B images in two views.

        ``images`` and ``augmented`` ``[2, B, C, H, W]``; ``policy`` ``[2, B, policy_dim]``; ``rel`` ``[2, B, 4 or 6]``,
        first the position of view 2 in view 1, then of view 1 in view 2; ``context_indices`` ``[B, K]`` and
        ``target_indices`` ``[B, T]`` are the masks of view 1, and view 2 takes those of image ``shuffle[i]`` (a random
        permutation). Each network runs once: on 2B, 2B and 4B sequences.
        """
        if shuffle is None:
            shuffle = torch.randperm(images.shape[1], device=images.device)
        if self.reverse_pred:
            images, augmented = augmented, images
        seen = torch.cat([context_indices, context_indices[shuffle]])
        own = torch.cat([target_indices, target_indices[shuffle]])
        other = own.roll(len(shuffle), dims=0)
        same = self.predictor.same_position.expand(rel.shape)
        told = torch.cat([same, same if self.rel_pos_disable else rel]).flatten(0, 1)
        policy = torch.zeros_like(policy) if self.iwm_disable else policy

        # before anything that autograd keeps, so that the peak of memory is not raised by the target's own needs
        targets = self.target(images.flatten(0, 1), own)
        context = self.encoder(augmented.flatten(0, 1), seen)
        predictions = self.predictor(
            context, seen, torch.cat([own, other]), repeat(policy, "v b p -> (r v b) p", r=2), told
        )
        return Latents(
            rearrange(predictions, "(v b) t d -> v b t d", v=4), rearrange(targets, "(v b) t d -> v b t d", v=2)
        )

    def update_target(self, momentum: float | Tensor) -> None:
        """After an optimiser step: ``target <- momentum * target + (1 - momentum) * encoder``."""
        update_ema(self.target_encoder, self.encoder, momentum)


class Classifier(nn.Module):
    """Fine-tuning: mean of the patch tokens and a linear layer; images ``[B, C, H, W]`` to logits ``[B, classes]``."""

    def __init__(self, encoder: VisionTransformer, classes: int) -> None:
        super().__init__()
        self.feature_model = encoder
        self.head = nn.Linear(encoder.width, classes)
        initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.feature_model(images).mean(1))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for :func:`repertory.nn.schedules.layer_decay_groups`."""
        return group_matcher()


def group_matcher() -> dict[str, Any]:
    """Patch embedding, then each block of ``feature_model``, then everything else: depth + 2 layers in timm's form."""
    return {"stem": r"^feature_model\.(?:patch_embed|pos_embed)", "blocks": r"^feature_model\.blocks\.(\d+)"}


def part_state(checkpoint: Mapping[str, Any], part: str = "target_encoder") -> dict[str, Tensor]:
    """The weights of one part of an official checkpoint, without its prefix.

    ``checkpoint`` is the official ``{"model", "epoch", "args"}`` or its state dict alone. ``part`` is ``encoder``,
    ``target_encoder`` or ``predictor`` (``feature_model`` and ``head`` after fine-tuning). The prefix is matched from
    the start, since ``encoder.`` is also a substring of ``target_encoder.``.

    Raises:
        DataError: no such prefix; names the prefixes found.
    """
    state = checkpoint.get("model", checkpoint)
    found = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
    if not found:
        prefixes = ", ".join(sorted({key.split(".")[0] + "." for key in state}))
        raise DataError(f"the checkpoint has no '{part}.' weights; prefixes found: {prefixes or 'none'}")
    return found


def load_official(model: WorldModel, checkpoint: Mapping[str, Any]) -> WorldModel:
    """Loads an official pretraining checkpoint, strictly; keys are the model's own names.

    Raises:
        DataError: a part is missing; names the prefixes found.
    """
    for part in ("encoder", "target_encoder", "predictor"):
        getattr(model, part).load_state_dict(part_state(checkpoint, part))
    return model


def load_encoder(
    encoder: VisionTransformer, checkpoint: Mapping[str, Any], part: str = "target_encoder"
) -> VisionTransformer:
    """Loads one encoder of an official checkpoint into an encoder of any patch and image size (resized bicubically)."""
    state = resize_state(part_state(checkpoint, part), encoder.patch_size, encoder.grid[0] * encoder.patch_size)
    encoder.load_state_dict(state)
    return encoder
