"""UMD's fixtures; images there are channels-last, and weights have the names and layouts of Flax."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.model import AutoEncoder, Output, from_official_keys
from repertory.systems.umd.objective import Losses, MaskedDiffusionLoss
from tests.parity.runner import Fixture


def _model(f: Fixture) -> AutoEncoder:
    c = f.config
    model = AutoEncoder(
        c["img_size"], c["patch_size"][0], c["channels"], c["width"], c["depth"], c["num_heads"], c["dec_depth"],
        mlp_ratio=c.get("mlp_ratio", 4.0), classes=c.get("num_classes"), adaln=c["adaln"],
        timesteps=c.get("timesteps", 1000), class_tokens=c.get("num_cls", 4),
    )  # fmt: skip
    model.load_state_dict(from_official_keys(f.state))
    return model.eval()


def _first(x: Tensor) -> Tensor:
    return rearrange(x, "... h w c -> ... c h w")


def _last(x: Tensor) -> Tensor:
    return rearrange(x, "... c h w -> ... h w c")


def _predictions(made: Output) -> Tensor:
    return _last(torch.cat([made.image, made.noise], dim=1))


def autoencoder(f: Fixture) -> dict[str, Tensor]:
    model, image, t, y = _model(f), _first(f.inputs["image"]), f.inputs["t"], f.inputs.get("y")
    masked = model(image, t, y, ratio=f.config["mask"], noise=f.inputs["noise"])
    whole = model(image, t, y)
    made = {
        "pred_masked": _predictions(masked),
        "mask": _last(masked.mask),
        "rep_masked": masked.representation,
        "pred": _predictions(whole),
        "rep": whole.representation,
    }
    if "pred_nolabel" in f.outputs:
        made["pred_nolabel"] = _predictions(model(image, t))
    for name in f.outputs:
        if name.startswith("pred_cfg"):
            made[name] = _predictions(model(image, t, y, guidance=float(name.removeprefix("pred_cfg"))))
    return made


def train_step(f: Fixture) -> dict[str, Tensor]:
    c, i, model = f.config, f.inputs, _model(f)
    loss = MaskedDiffusionLoss(
        Diffusion(c["timesteps"], c["beta_schedule"]), c["no_noise_prob"], c["mask_ratio_no_noise"], c["mask_ratio"]
    )
    weights = {name: value.clone().requires_grad_() for name, value in f.state.items()}

    given = {
        "images": _first(i["image"]), "labels": i.get("y"), "steps": i["t"], "noise": _first(i["eps"]),
        "clean_masks": i.get("noise_clean"), "noisy_masks": i.get("noise_noisy"), "checked": True,
    }  # fmt: skip
    tied = {f"model.{name}": value for name, value in from_official_keys(weights).items()}
    made = functional_call(_Step(model, loss), tied, kwargs=given)
    made.loss.backward()
    return {
        "x_t": _last(made.noised),
        "loss_clean": made.clean,
        "loss_eps": made.noise,
        "loss_x0": made.image,
        "loss_noisy": made.noisy,
        "loss": made.loss,
        **{name: weights[name.removeprefix("grad.")].grad for name in f.outputs if name.startswith("grad.")},
    }


class _Step(nn.Module):
    """Model and loss as one module, so that gradients reach the weights under their official names."""

    def __init__(self, model: AutoEncoder, loss: MaskedDiffusionLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, **given: Tensor) -> Losses:
        return self.loss(self.model, **given)


def diffusion(f: Fixture) -> dict[str, Tensor]:
    c, i = f.config, f.inputs
    of = Diffusion(c["steps"], c["step_schedule"], follow="official")
    eta, clip = c["eta"], c["clip_denoised"]
    x_t = of.noised(_first(i["x0"]), i["t"], _first(i["eps"]))
    sample, x0 = of.ddim(x_t, i["t"], i["t_next"], _first(i["eps_hat"]), _first(i["z"]), eta, clip)
    noise = _first(i["loop_noise"])
    loop = of.sample(lambda x, step: 0.5 * x, noise[0], c["sampling_steps"], eta, clip, noise[1:])
    made = {
        "x_t": _last(x_t),
        "ddim_sample": _last(sample),
        "ddim_x0": _last(x0),
        "loop_timesteps": torch.tensor(of.sampling_steps(c["sampling_steps"])),
        "loop_sample": _last(loop),
    }
    for schedule in ("cosine", "linear"):
        tables = dict(Diffusion(c["steps"], schedule, follow="official").named_buffers())
        made |= {f"{schedule}.{name}": table for name, table in tables.items()}
    return made


PARTS = {
    "autoencoder_adaln": autoencoder,
    "autoencoder_token": autoencoder,
    "train_step": train_step,
    "diffusion": diffusion,
}
