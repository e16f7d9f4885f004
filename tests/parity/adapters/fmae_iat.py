"""FMAE-IAT's fixtures."""

from __future__ import annotations

from torch import Tensor

from repertory.nn.mae import MAE, MaskedEncoder
from repertory.nn.mae import from_official as mae_from_official
from repertory.nn.schedules import layer_decay_groups
from repertory.systems.fmae_iat.metrics import action_unit_scores
from repertory.systems.fmae_iat.model import AdversarialViT, from_official
from repertory.systems.fmae_iat.objective import identity_adversarial_loss
from tests.parity.runner import Fixture


def mae(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    encoder = MaskedEncoder(
        c["img_size"], c["patch_size"], width=c["embed_dim"], depth=c["depth"], heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
    )  # fmt: skip
    model = MAE(
        encoder, c["decoder_embed_dim"], c["decoder_depth"], c["decoder_num_heads"], c["norm_pix_loss"], c["mlp_ratio"]
    )
    model.load_state_dict(mae_from_official(f.state))
    made = model.eval()(f.inputs["image"], f.inputs["noise"], c["mask_ratio"])
    made.loss.backward()
    gradients = mae_from_official({name: name for name in f.state})
    by_official = {official: dict(model.named_parameters()).get(ours) for ours, official in gradients.items()}
    return {
        "latent": made.latent,
        "mask": made.masking.mask,
        "ids_restore": made.masking.restore,
        "pred": made.predicted,
        "loss": made.loss,
        **{k: by_official[k.removeprefix("grad.")].grad for k in f.outputs if k.startswith("grad.")},
    }


def _adversarial(f: Fixture, reversal: float) -> tuple[AdversarialViT, dict[str, Tensor]]:
    c = f.config
    model = AdversarialViT(
        c["num_classes"], c["num_subjects"], reversal, sum(k.startswith("ID_head") for k in f.state) // 2,
        image_size=c["img_size"], patch_size=c["patch_size"], width=c["embed_dim"], depth=c["depth"],
        heads=c["num_heads"],
    )  # fmt: skip
    state = from_official(f.state)
    if reversal == 0:
        state = {k: v for k, v in state.items() if k.startswith("vit.")}
    model.load_state_dict(state)
    return model.eval(), {official: ours for ours, official in from_official({k: k for k in f.state}).items()}


def identity_adversarial(f: Fixture) -> dict[str, Tensor]:
    i, c = f.inputs, f.config
    model, names = _adversarial(f, float(i["lambda"]))
    logits, subject_logits = model.both(i["image"])
    losses = identity_adversarial_loss(logits, i["au"], subject_logits, i["subject"])
    losses.loss.backward()
    plain, _ = _adversarial(f, 0.0)
    identity_adversarial_loss(plain.both(i["image"])[0], i["au"]).loss.backward()
    groups = {
        id(p): group
        for group in layer_decay_groups(model, 1.0, c["weight_decay"], c["layer_decay"])
        for p in group["params"]
    }
    trained = {"grad_iat": dict(model.named_parameters()), "grad_lambda0": dict(plain.named_parameters())}
    ordered = [groups[id(trained["grad_iat"][names[name]])] for name in c["parameter_order"]]
    gradients = {
        k: trained[k.split(".")[0]][names[k.split(".", 1)[1]]].grad for k in f.outputs if k.startswith("grad_")
    }
    return {
        "features": model.features(i["image"]),
        "au_logits": logits,
        "id_logits": subject_logits,
        "au_loss": losses.actions,
        "id_loss": losses.identity,
        "loss": losses.loss,
        "lr_scale": Tensor([group["lr_scale"] for group in ordered]),
        "weight_decay": Tensor([group["weight_decay"] for group in ordered]),
        **gradients,
    }


def au_metrics(f: Fixture) -> dict[str, Tensor]:
    scores = action_unit_scores(f.inputs["targets"].numpy(), f.inputs["logits"].sigmoid().numpy())
    threshold, f1 = scores.best
    return {
        "f1_at_05": scores.at(0.5), "best_mean_f1": f1, "best_threshold": threshold, "mean_auc": scores.mean_auc
    }  # fmt: skip


PARTS = {"mae": mae, "identity_adversarial": identity_adversarial, "au_metrics": au_metrics}
