"""CheXWorld's fixtures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.nn.ema import update_ema
from repertory.nn.positions import fourier, frequencies, relative, relative_easy, sincos_2d
from repertory.nn.schedules import cosine_schedule
from repertory.nn.vit import VisionTransformer
from repertory.systems.chexworld.augmentation import Box, Draws, DualTransform, ParameterizedTransform
from repertory.systems.chexworld.masks import MultiBlockMasks
from repertory.systems.chexworld.model import Predictor, WorldModel, load_official
from repertory.systems.chexworld.objective import world_model_loss
from repertory.systems.chexworld.segmentation import UNetAdapter
from tests.parity.runner import Fixture


def pos_embed(f: Fixture) -> dict[str, Tensor]:
    width, grid = f.config["embed_dim"], f.config["grid_size"]
    omega = frequencies(width)
    rel = f.inputs["rel_easy"]
    return {
        "abs": sincos_2d(grid, width),
        "rel_easy": relative_easy(rel, grid, omega),
        "rel_full": relative(f.inputs["rel_full"], grid, omega),
        "fourier": fourier(rel[:, :2].abs(), f.config["fourier_max_freq"], f.config["fourier_num_bands"]),
    }


def _encoder(c: dict) -> VisionTransformer:
    return VisionTransformer(c["img"], c["patch"], width=c["dim"], depth=c["depth"], heads=c["heads"])


def encoder(f: Fixture) -> dict[str, Tensor]:
    model = _encoder(f.config).eval()
    model.load_state_dict(f.state)
    image = f.inputs["image"]
    layers = model(image, layer_results=True)
    return {
        "tokens": model(image),
        "tokens_masked": model(image, f.inputs["mask"]),
        "tokens2x": model(f.inputs["image2x"]),
        **{f"layer{i}": layer for i, layer in enumerate(layers)},
    }


def dual_step(f: Fixture) -> dict[str, Tensor]:
    c, i = f.config, f.inputs
    predictor = Predictor(
        grid=c["img"] // c["patch"],
        encoder_width=c["dim"],
        width=c["pdim"],
        depth=c["pdepth"],
        heads=c["heads"],
        policy_dim=c["policy_dim"],
        conditioning=c["cond_type"],
        general_position=c["ssl_type"] == "iwm_dual",
        unify_embed=c.get("unify_embed", False),
    )
    model = WorldModel(
        _encoder(c),
        predictor,
        target_last_k=c["target_last_k"],
        target_norm=c["target_norm_type"],
        iwm_disable=c["iwm_disable"],
        rel_pos_disable=c["rel_pos_disable"],
        reverse_pred=c["reverse_pred"],
    )
    load_official(model, {"model": f.state}).eval()
    latents = model(
        torch.stack([i["image1"], i["image2"]]),
        torch.stack([i["image_aug1"], i["image_aug2"]]),
        torch.stack([i["aug_params1"], i["aug_params2"]]),
        torch.stack([i["rel_pos_21"], i["rel_pos_12"]]),
        i["mask_enc"],
        i["mask_pred"],
        i["shuffle"],
    )
    kind = {"l2": "l2", "unigrad": "unigrad"}.get(c["loss_type"], "l1")
    losses = world_model_loss(
        *latents, kind, extra_weight=c["extra_loss_weight"], extra_mean=c["extra_mean"], reg_weight=c["reg_weight"]
    )
    losses.loss.backward()
    parameters = dict(model.named_parameters())
    return {
        **dict(zip(("z11", "z22", "z21", "z12"), latents.predictions, strict=True)),
        **dict(zip(("h1", "h2"), latents.targets, strict=True)),
        "loss": losses.loss,
        "loss_intra": losses.intra,
        "loss_extra": losses.extra,
        "pred_var": losses.pred_var,
        **{k: parameters[k.removeprefix("grad.")].grad for k in f.outputs if k.startswith("grad.")},
    }


def ema_and_schedules(f: Fixture) -> dict[str, Tensor]:
    names = [k.removeprefix("target.") for k in f.inputs if k.startswith("target.")]
    target, online = (nn.ParameterList(f.inputs[f"{kind}.{name}"] for name in names) for kind in ("target", "online"))
    update_ema(target, online, f.inputs["momentum"])
    c = f.config
    steps, warmup = (c[k] * c["iters_per_epoch"] for k in ("epochs", "warmup_epochs"))
    return {
        **{f"target.{name}": weight for name, weight in zip(names, target, strict=True)},
        "lr_schedule": cosine_schedule(c["lr"], c["min_lr"], steps, warmup),
        "momentum_schedule": cosine_schedule(c["ema"], c["ema_end"], steps),
    }


def masks(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    side = c["input_size"] // c["patch_size"]
    sampler = MultiBlockMasks(
        grid=(side, side),
        context_scale=tuple(c["enc_mask_scale"]),
        target_scale=tuple(c["pred_mask_scale"]),
        target_aspect=tuple(c["aspect_ratio"]),
        blocks=c["npred"],
        min_keep=c["min_keep"],
        merge=c["merge"],
    )
    sampled = sampler(c["batch"], uniform=f.inputs["uniform_block"], top_left=f.inputs["top_left"])
    target = sampled.target[:, None] if c["merge"] else sampled.target
    return {"mask_enc": sampled.context, **{f"mask_pred{i}": target[:, i] for i in range(target.shape[1])}}


def dual_transform(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    transform = DualTransform(
        size=c["size"],
        mean=tuple(c["mean"]),
        std=tuple(c["std"]),
        augmentation=ParameterizedTransform(
            brightness=c["brightness"], contrast=c["contrast"], gamma=tuple(c["gamma"]), blur=tuple(c["blur"])
        ),
    )
    # the fixture holds the drawn parameters among its outputs only
    draws = Draws(
        boxes=tuple(Box(*f.inputs[f"box{v}"].tolist()) for v in (1, 2)),
        flips=tuple(f.inputs["flip"].bool().tolist()),
        parameters=tuple(f.outputs[f"aug_params{v}"] for v in (1, 2)),
        noise=tuple(f.inputs.get(f"noise{v}") for v in (1, 2)),
    )
    views = transform(f.inputs["image"], draws)
    return {
        **{f"image{v + 1}": image for v, image in enumerate(views.images)},
        **{f"image_aug{v + 1}": image for v, image in enumerate(views.augmented)},
        **{f"aug_params{v + 1}": parameters for v, parameters in enumerate(views.policy)},
        "rel_pos_21": views.rel[0],
        "rel_pos_12": views.rel[1],
    }


def segmenter(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    vit = VisionTransformer(
        c["img_size"], c["patch_size"], width=c["embed_dim"], depth=c["depth"], heads=c["num_heads"]
    )
    model = UNetAdapter(vit, c["num_classes"], c["base_channels"], c["out_indices"]).eval()
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **f.state})
    return {"logits": model(f.inputs["image"])}


PARTS = {
    "pos_embed": pos_embed,
    "encoder": encoder,
    "dual_step": dual_step,
    "ema_and_schedules": ema_and_schedules,
    "masks": masks,
    "dual_transform": dual_transform,
    "segmenter": segmenter,
}
