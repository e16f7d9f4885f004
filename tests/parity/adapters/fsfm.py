"""FSFM's fixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.nn.mae import MaskedEncoder
from repertory.nn.masking import patch_errors
from repertory.systems.fsfm.masking import FaceMasks, GivenPlaces, crfr_p, region_patches
from repertory.systems.fsfm.metrics import by_video, detection
from repertory.systems.fsfm.model import FaceModel, detector, from_official
from repertory.systems.fsfm.objective import fsfm_loss, instance_loss
from tests.parity.runner import Fixture


def crfrp_masking(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    groups = {name: tuple(classes) for name, classes in c["regions"].items()}
    made = {}
    for case in sorted({name.split(".")[0] for name in f.outputs}):
        region, _, variant = case.partition("_")
        parsing = f.inputs[f"parsing_{variant}" if variant else "parsing"]
        lengths = f.inputs[f"{case}.perm_len"].tolist()
        draws = GivenPlaces(iter(f.inputs[f"{case}.perm"].split(lengths)))
        covered = list(groups).index(region)
        regions = region_patches(parsing, c["patch_size"], groups)
        masks = [crfr_p(regions[[i]], covered, c["mask_ratio"], draws) for i in range(len(parsing))]
        whole = FaceMasks(*map(torch.cat, zip(*masks, strict=True)))
        made |= {f"{case}.img_mask": whole.mask, f"{case}.region_mask": whole.region}
    return made


KINDS = {
    "simsiam": "simsiam", "byol": "byol", "infonce": "infonce", "mocov3": "infonce", "simclr": "simclr",
    "infoncepositive": "infonce_positive", "simclrpositive": "simclr_positive",
}  # fmt: skip


def instance_losses(f: Fixture) -> dict[str, Tensor]:
    made = {}
    for kind in ("simsiam", "byol", "infonce", "infonce_positive", "simclr", "simclr_positive"):
        features = f.inputs["features"].clone().requires_grad_()
        loss = instance_loss(*features.unbind(1), kind, f.config["temperature"])
        loss.backward()
        made |= {kind: loss, f"grad.{kind}": features.grad}
    return made


def pretrain_step(f: Fixture) -> dict[str, Tensor]:
    c, i = f.config, f.inputs
    encoder = MaskedEncoder(
        c["img_size"], c["patch_size"], 3, c["embed_dim"], c["depth"], c["num_heads"], c["mlp_ratio"]
    )
    model = FaceModel(
        encoder,
        decoder_width=c["decoder_embed_dim"],
        decoder_depth=c["decoder_depth"],
        decoder_heads=c["decoder_num_heads"],
        rep_depth=c["rep_decoder_depth"],
        rep_heads=c["rep_decoder_num_heads"],
        projection_hidden=c["projection_hidden_size"],
        projection_out=c["projection_size"],
        mlp_ratio=c["mlp_ratio"],
        norm_pixels=c["norm_pix_loss"],
    ).eval()
    state = {}
    for network in ("online", "target"):
        own = {k.removeprefix(f"{network}."): v for k, v in f.state.items() if k.startswith(f"{network}.")}
        state |= from_official(own, network)
    model.load_state_dict(state)
    kept = int(i["mask"].shape[1] * (1 - c["mask_ratio"]))
    kind = KINDS["".join(letter for letter in c["cl_loss"].lower() if letter.isalnum())]
    view = model(i["image"], i["mask"], kept)
    losses = fsfm_loss(
        patch_errors(view.predicted, model.pixels(i["image"])),
        i["mask"],
        i["region_mask"],
        view.online,
        view.target,
        c["weight_sfr"],
        c["weight_cl"],
        kind,
        c.get("temperature", 0.1),
    )
    losses.loss.backward()
    parameters, official = dict(model.named_parameters()), list(f.outputs)
    grads = {
        name: parameters[next(iter(from_official({name.removeprefix("grad."): torch.empty(0)})))].grad
        for name in official
        if name.startswith("grad.")
    }
    model.update_target(i["momentum"])
    moved = model.state_dict()
    ema = {
        name: moved[next(iter(from_official({name.removeprefix("ema."): torch.empty(0)}, "target")))]
        for name in official
        if name.startswith("ema.")
    }
    return {
        "pred": view.predicted,
        "feat_online": view.online,
        "feat_target": view.target,
        "loss_rec_all": losses.reconstruction,
        "loss_rec_region": losses.region,
        f"loss_{kind}": losses.instance,
        "loss": losses.loss,
        **grads,
        **ema,
    }


def vit_finetune(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    model = detector(
        c["num_classes"],
        c["img_size"],
        c["patch_size"],
        c["embed_dim"],
        c["depth"],
        c["num_heads"],
        pooling="mean" if c["global_pool"] else "class",
    ).eval()
    model.load_state_dict(f.state)
    tokens = model.forward_features(f.inputs["image"])
    return {"features": model.forward_head(tokens, pre_logits=True), "logits": model(f.inputs["image"])}


def metrics(f: Fixture) -> dict[str, Tensor]:
    video, label, score = (f.inputs[name].numpy() for name in ("video", "label", "score"))
    videos = by_video(video, label, score)
    made = {"video_label": videos.labels, "video_score": videos.scores}
    for name, of in {"frame": detection(label, score), "video": detection(videos.labels, videos.scores)}.items():
        percent = of.in_percent()
        made |= {
            f"{name}_auc": percent.auc,
            f"{name}_eer": of.eer,
            f"{name}_acc": percent.accuracy,
            f"{name}_bacc": percent.balanced_accuracy,
        }
    return {name: torch.as_tensor(made[name]) for name in f.outputs}


PARTS = {
    "crfrp_masking": crfrp_masking,
    "instance_losses": instance_losses,
    "pretrain_step": pretrain_step,
    "vit_finetune": vit_finetune,
    "metrics": metrics,
}
