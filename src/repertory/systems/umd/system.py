"""UMD: one network that represents images and generates them, from one schedule of noise and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import Pixels, augmented
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, prefixes, read_checkpoint
from repertory.errors import ConfigError, DataError, UserError, first_line, nearest
from repertory.evaluation import Metric, Metrics, describe
from repertory.nn.masking import unpatchify
from repertory.runs import seeded
from repertory.systems.umd import figures
from repertory.systems.umd.config import Config
from repertory.systems.umd.data import (
    READERS,
    Held,
    Latents,
    Pictures,
    as_they_are,
    latents_of,
    load_vae,
    pictures_of,
    pixels,
    stacked,
    to_bytes,
)
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.evaluation import (
    few_shots,
    frechet_distance,
    label_hits,
    noise_errors,
    reconstruction_errors,
    ridge_probe,
)
from repertory.systems.umd.model import AutoEncoder, from_official_keys, official_shape, shape_of
from repertory.systems.umd.objective import MaskedDiffusionLoss
from repertory.systems.umd.training import FineTuning, Recipe, Training
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of

SAMPLED = 64
"""Images that are sampled together."""
SHAPE = ("image_size", "patch_size", "channels", "width", "depth", "heads", "decoder_depth", "mlp_ratio", "adaln")
"""Options that are the network's sizes."""
HELD = 16_000_000
"""Numbers in a set of images that is held in memory as a tensor."""


class UMD(TorchSystem):
    """Unified masked diffusion: masked auto-encoding and diffusion in one model (Hansen-Estruch et al. 2024)."""

    readers = READERS

    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        for encoder in self._encoders.values():
            if not isinstance(encoder.module, AutoEncoder):
                raise ConfigError(f"encoder {encoder.address}: not the encoder of a UMD run, give run:RUN")
        self._learn(splits)
        self._batches(splits.train.take([0]))([0])  # refuses latents of another shape

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        made: dict[str, Any] = {"shape": self._shape} if self._encoders else {}
        if self.config.task == "generation":
            column, classes = class_names(splits)
            class_indices(splits.val, column, classes)
            made |= {"label": column, "classes": classes}
        return made

    @property
    def _shape(self) -> dict[str, Any]:
        """Sizes of the network: the configuration's, or those of the run that it starts from."""
        for encoder in self._encoders.values():
            return shape_of(encoder.module)  # type: ignore[arg-type]
        c = self.config
        named = (
            "image_size",
            "patch_size",
            "channels",
            "width",
            "depth",
            "heads",
            "decoder_depth",
            "mlp_ratio",
            "adaln",
        )
        shape: dict[str, Any] = self.assets.get("shape") or {name: getattr(c, name) for name in named}
        return shape

    def _autoencoder(self, classes: int | None = None) -> AutoEncoder:
        c = self.config
        return AutoEncoder(
            **self._shape, classes=classes, label_dropout=c.label_dropout, timesteps=c.timesteps, remat=c.remat
        )

    def _build(self) -> nn.Module:
        model = nn.ModuleDict()
        if self.config.pretrains or self.config.task == "none":
            model["autoencoder"] = self._autoencoder()
        if self.config.task == "generation":
            model["generator"] = self._autoencoder(len(self.classes))
            for encoder in self._encoders.values():
                _take_over(model["generator"], encoder.module)
        return model

    @property
    def classes(self) -> list[str]:
        """Names of the classes that are generated; empty without fine-tuning."""
        names: list[str] = self.assets.get("classes", [])
        return names

    @property
    def autoencoder(self) -> AutoEncoder:
        """What represents images: the pre-trained network, or else the generator."""
        model: AutoEncoder = self.model["autoencoder" if "autoencoder" in self.model else "generator"]
        return model

    @property
    def generator(self) -> AutoEncoder:
        """What generates images: the fine-tuned network (its averaged weights), or else the pre-trained one."""
        model: AutoEncoder = self.model["generator" if "generator" in self.model else "autoencoder"]
        return model

    @cached_property
    def diffusion(self) -> Diffusion:
        """The schedule of the noise."""
        return Diffusion(self.config.timesteps, self.config.noise_schedule)

    @property
    def _sees_clean(self) -> bool:
        """Whether the representing network was trained at time 0."""
        c = self.config
        return (c.no_noise_prob if "autoencoder" in self.model else c.finetune_no_noise_prob) > 0

    @property
    def encoder(self) -> Encoder:
        """Mean of the class tokens, and map of tokens, of clean images (told step 0 where these were not trained)."""
        self._needs_fit()
        model, time = self.autoencoder, 0 if self._sees_clean else 1

        def told(x: Tensor) -> Tensor:
            return torch.full((1, 1), time, device=x.device)

        def pooled(module: Any, x: Tensor) -> Tensor:
            return module.represent(x, told(x))

        def dense(module: Any, x: Tensor) -> Tensor:
            return rearrange(module.tokens(x, told(x))[1], "b (h w) d -> b d h w", h=module.grid[0])

        half = (0.5,) * model.channels
        return Encoder(model, model.width, pooled, dense, Convention(model.image_size, half, half, model.channels))

    # -- data ----------------------------------------------------------------------------------------------------

    def _batches(
        self, items: Images, scale: tuple[float, float] | None = None, labels: Tensor | None = None
    ) -> Pixels | Held:
        """Images as they are, or (``scale``) as training varies them."""
        c, size, channels = self.config, self._shape["image_size"], self._shape["channels"]
        if c.space == "latents":
            if not isinstance(items, Latents):
                items = latents_of(items, self._vae, 8 * size)
            found = items.latent(0).shape
            if found != (size, size, channels):
                raise DataError(
                    f"latents of shape {list(found)}: the configuration has [{size}, {size}, {channels}] "
                    "(image_size, channels)"
                )
            return Held(stacked(items), labels)
        if isinstance(items, Latents):
            raise DataError("these are latents: set space=latents (preset latent)")
        if scale is not None and (scale != (1.0, 1.0) or c.flip):
            half = (0.5,) * channels
            return Pixels(items, augmented(size, half, half, scale, c.crop_ratio, c.flip), labels)
        if len(items) * channels * size**2 <= HELD:
            return Held(pixels(items, size, channels), labels)
        return Pixels(items, as_they_are(size, channels), labels)

    @cached_property
    def _vae(self) -> Any:
        return load_vae(self.config.vae)

    def _labels(self, items: Images) -> Tensor:
        return class_indices(items, self.assets["label"], self.classes)

    # -- fit -----------------------------------------------------------------------------------------------------

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, stages = self.config, []
        if c.pretrains:
            loss = MaskedDiffusionLoss(self.diffusion, c.no_noise_prob, c.clean_ratio, c.noisy_ratio)
            recipe = Recipe(c.lr, c.beta2, c.weight_decay, c.warmup, c.clip, c.batch_size)
            stages.append(
                Stage(
                    "pretrain",
                    Training(self.model["autoencoder"], loss, recipe),
                    Shuffled(len(splits.train), c.batch_size, self._batches(splits.train, c.crop_scale)),
                    epochs=c.epochs,
                    steps=c.steps,
                    validation=self._validation(splits.val, c.batch_size, self._batches(splits.val)),
                )
            )
        if c.task == "generation":
            loss = MaskedDiffusionLoss(self.diffusion, c.finetune_no_noise_prob, c.clean_ratio, c.finetune_noisy_ratio)
            recipe = Recipe(
                c.finetune_lr, c.finetune_beta2, c.finetune_weight_decay, c.warmup, c.clip, c.finetune_batch_size, c.ema
            )
            train = self._batches(splits.train, c.finetune_crop_scale, self._labels(splits.train))
            val = self._batches(splits.val, labels=self._labels(splits.val))
            stages.append(
                Stage(
                    "finetune",
                    FineTuning(self.model["generator"], loss, recipe),
                    Shuffled(len(splits.train), c.finetune_batch_size, train),
                    epochs=c.finetune_epochs,
                    steps=c.finetune_steps,
                    validation=self._validation(splits.val, c.finetune_batch_size, val),
                    begin=self._begin_generation,
                )
            )
        return stages

    def _validation(self, items: Images, batch_size: int, batches: Pixels | Held) -> Fixed:
        return Fixed(min(len(items), 4 * batch_size), batch_size, batches, "validation")

    def _begin_generation(self) -> None:
        if "autoencoder" in self.model:
            _take_over(self.model["generator"], self.model["autoencoder"])

    # -- embed and evaluate --------------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        batches, seed, t = self._batches(data), self.record.get("seed", 0), None
        diffusion = self.diffusion.to(self.device)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            images = batches(rows)["images"].to(self.device)
            if not self._sees_clean:  # the paper's "noised_predict"
                step = self.config.noised_predict
                noise = []
                for name in data.ids[rows]:
                    with seeded(seed, "embed", name):
                        noise.append(torch.randn(images.shape[1:]))
                images = diffusion.noised(images, step, torch.stack(noise).to(self.device))
                t = torch.full((1, 1), step + 1, device=self.device)
            vectors = self.autoencoder.represent(images, t)
            yield Embeddings.build(vectors.float().cpu().numpy(), id=data.ids[rows])

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        c, seed, label = self.config, self.record.get("seed", 0), self._label_column(splits.test)
        test = self._select(splits.test, {})
        if label is None or splits.rule == "none":
            metrics = describe(test.vectors, None if label is None else test.column(label), seed=seed)
        else:
            train = self._select(splits.train, {})
            taught, asked = train.column(label), test.column(label)
            metrics = describe(test.vectors, asked, train.vectors, taught, seed=seed)
            rows = few_shots(taught, c.shots)
            hits = ridge_probe(train.vectors[rows], taught[rows], test.vectors, asked, c.ridge)
            about = f"ridge probe on {len(rows)} images, at most {c.shots} a class, measured on {len(hits)}"
            metrics |= {"ridge_accuracy": Metric.of(hits, seed, higher_is_better=True, about=about)}
        metrics |= self._errors(splits.test)
        if "generator" in self.model and c.generated_images:
            metrics |= self._generated(splits)
        return metrics

    def _errors(self, items: Images) -> Metrics:
        """How well noise and removed patches are predicted, on the same held-out images each time."""
        seed, c = self.record.get("seed", 0), self.config
        n = min(len(items), c.evaluation_images)
        items = items.take(np.sort(np.random.default_rng(0).choice(len(items), n, replace=False)))
        batches, diffusion = self._batches(items), self.diffusion.to(self.device)
        found: dict[str, list[Tensor]] = {}
        for rows in batches_of(n, min(64, c.batch_size), lambda rows: rows):
            images, ids = batches(rows)["images"].to(self.device), items.ids[rows].tolist()
            model = self.autoencoder
            found.setdefault("noise_error", []).append(noise_errors(model, diffusion, images, ids, seed))
            found.setdefault("reconstruction_error", []).append(
                reconstruction_errors(model, images, ids, c.clean_ratio, seed)
            )
            if "generator" in self.model and "autoencoder" in self.model:
                found.setdefault("generator/noise_error", []).append(
                    noise_errors(self.generator, diffusion, images, ids, seed)
                )
        about = {
            "noise_error": "mean squared error of the predicted noise, mean of five steps, no mask",
            "reconstruction_error": "mean squared error of removed patches of clean images",
            "generator/noise_error": "as noise_error, of the generator without labels",
        }
        return Metrics(
            {
                name: Metric.of(torch.cat(parts).double().numpy(), seed, higher_is_better=False, about=about[name])
                for name, parts in found.items()
            }
        )

    def _generated(self, splits: Splits[Images]) -> Metrics:
        """Whether generated images look like their class, and (``fid``) like all of them."""
        c, seed = self.config, self.record.get("seed", 0)
        labels = torch.arange(c.generated_images) % len(self.classes)
        made = self._sample(labels, seed)
        metrics = Metrics()
        real = splits.test if splits.rule == "none" else splits.train
        if self.assets["label"] in real.columns.column_names:
            rows = few_shots(real.column(self.assets["label"]).astype(str), max(1, 5000 // len(self.classes)))
            shown = self._batches(real.take(rows))(np.arange(len(rows)))["images"]
            hits = label_hits(shown.flatten(1), self._labels(real.take(rows)), made.flatten(1), labels)
            about = f"share of {len(labels)} generated images that a linear classifier of real ones gives their class"
            metrics |= {"generated_accuracy": Metric.of(hits, seed, higher_is_better=True, about=about)}
        if c.fid:
            shown = self._batches(splits.test)(np.arange(len(splits.test)))["images"]
            about = f"of {len(labels)} generated and {len(shown)} held-out images"
            metrics |= {
                "fid": Metric(
                    frechet_distance(self._as_rgb(shown), self._as_rgb(made)), higher_is_better=False, about=about
                )
            }
        return metrics

    def _as_rgb(self, images: Tensor) -> Tensor:
        images = pictures_of(images, self._vae) if self.config.space == "latents" else images
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)

    # -- generate ------------------------------------------------------------------------------------------------

    def generate(
        self,
        data: Any = None,
        n: int = 1,
        seed: int = 0,
        *,
        label: str | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        eta: float | None = None,
    ) -> Images:
        """New images, by DDIM from noise.

        Args:
            data: labelled images: ``n`` new ones are made for each, of its class. None: ``n`` in all, the classes in
                turn.
            label: the only class.
            guidance: strength of classifier-free guidance; 1: none. steps, eta: of the sampler. None: the
                configuration's.

        Returns:
            Images that ``repertory.data.open`` accepts, with their ``label``; latents where those are modelled and no
            ``vae`` is named.

        Raises:
            ConfigError: labels or guidance without fine-tuning to classes, an unknown label, steps out of range.
            UserError: the network has never seen noise.
        """
        self._needs_fit()
        if n < 1:
            raise ConfigError(f"n={n}: at least 1 is needed")
        if "generator" not in self.model:
            if data is not None or label is not None or guidance is not None:
                raise ConfigError("data, label and guidance need classes: fit with task=generation")
            if self.config.no_noise_prob == 1:
                raise UserError("this run was trained without noise (no_noise_prob=1): it cannot generate")
            return self._as_images(self._sample(None, seed, None, steps, eta, n), None)
        if label is not None and str(label) not in self.classes:
            raise ConfigError(f"no class '{label}'{nearest(str(label), self.classes)}")
        if data is not None and label is not None:
            raise ConfigError("give data or label, not both")
        if label is not None:
            labels = torch.full((n,), self.classes.index(str(label)))
        elif data is not None:
            labels = self._labels(self._open(data).all).repeat_interleave(n)
        else:
            labels = torch.arange(n) % len(self.classes)
        return self._as_images(self._sample(labels, seed, guidance, steps, eta), labels)

    @torch.inference_mode()
    def _sample(
        self,
        labels: Tensor | None,
        seed: int,
        guidance: float | None = None,
        steps: int | None = None,
        eta: float | None = None,
        n: int = 0,
    ) -> Tensor:
        """Images ``[N, C, H, W]`` of ``labels`` ``[N]``, or ``n`` of none."""
        c, model, device = self.config, self.generator.eval(), self.device
        diffusion = self.diffusion.to(device)
        guidance, n = c.guidance if guidance is None else guidance, n if labels is None else len(labels)
        steps, eta = steps or c.sampling_steps, c.eta if eta is None else eta
        diffusion.sampling_steps(steps)
        made = []
        for start in range(0, n, SAMPLED):
            size = min(SAMPLED, n - start)
            of = None if labels is None else labels[start : start + size].to(device)
            predict = self._predictor(model, diffusion, of, guidance)
            with seeded(seed, "generate", start):
                noise = torch.randn(size, model.channels, model.image_size, model.image_size).to(device)
                made.append(diffusion.sample(predict, noise, steps, eta, c.space == "pixels").float().cpu())
        return torch.cat(made)

    def _predictor(self, model: AutoEncoder, diffusion: Diffusion, labels: Tensor | None, guidance: float) -> Any:
        """From noised images and their step to the noise in them; each class is conditioned once a step."""
        rows, place = (None, None) if labels is None else labels.unique(return_inverse=True)

        def predict(x: Tensor, step: int) -> Tensor:
            t = torch.full((1 if rows is None else len(rows), 1), step + 1, device=x.device)
            if rows is None or place is None:
                made = model.autoencode(model.patched(x), model.condition(t))
            elif guidance == 1:
                made = model.autoencode(model.patched(x), model.condition(t, rows).rows(place))
            else:
                pair = model.pair(t, rows).rows(torch.cat([place, place + len(rows)]))
                made = model.guided(model.patched(x), pair, guidance)
            if self.config.predict_from == "noise":
                return unpatchify(made.noise, model.patch_size, model.grid)
            return diffusion.noise_of(x, step, unpatchify(made.image, model.patch_size, model.grid))

        return predict

    def _as_images(self, made: Tensor, labels: Tensor | None) -> Images:
        width = len(str(len(made) - 1))
        ids = [f"generated-{i:0{width}d}" for i in range(len(made))]
        columns = {} if labels is None else {"label": [self.classes[int(i)] for i in labels]}
        roles = {"label": ("label",)} if columns else {}
        if self.config.space == "latents":
            if not self.config.vae:
                return Latents(ids, list(made.movedim(1, -1).numpy()), columns, roles)
            made = pictures_of(made, self._vae)
        return Pictures(ids, to_bytes(made), columns, roles)

    def figures(self, data: Images) -> dict[str, Any]:
        with torch.inference_mode():
            return figures.of_images(self, data)

    # -- official checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> UMD:
        """From the official tree of Flax parameters with names joined by ``/``: the tensors by name, or a file of them
        (``.npz`` as Big Vision writes it, or safetensors).

        A checkpoint with labels becomes a generator, its classes named by their numbers.

        Raises:
            UserError: a tensor is missing; names the prefixes found.
        """
        read = _arrays(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        state = {str(name).removeprefix("params/"): torch.as_tensor(value) for name, value in read.items()}
        source = str(checkpoint)[:200] if isinstance(checkpoint, (str, Path)) else "state dict"
        try:
            shape, weights = official_shape(state), from_official_keys(state)
        except KeyError as error:
            raise UserError(
                f"not a UMD checkpoint: no tensor {error}; names begin with {', '.join(prefixes(state)) or 'nothing'}"
            ) from None
        tokens, classes = shape.pop("class_tokens"), shape.pop("classes")
        if tokens != 4:
            raise UserError(f"a checkpoint with {tokens} class tokens: 4 are expected")
        if shape["channels"] not in (1, 3):
            shape["space"] = "latents"
        if classes is None:
            return cls(cls.Config.build(**shape))._imported(
                {}, {f"autoencoder.{name}": value for name, value in weights.items()}, source
            )
        assets = {"classes": [str(i) for i in range(classes)], "label": "label"}
        config = cls.Config.build(**shape, task="generation", epochs=0)
        return cls(config)._imported(assets, {f"generator.{name}": value for name, value in weights.items()}, source)


def _arrays(path: str | Path) -> Mapping[str, Any]:
    """The arrays of a checkpoint file by name, read without unpickling."""
    if Path(path).suffix != ".npz" or not Path(path).exists():
        return read_checkpoint(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}
    except Exception as error:  # zip and header errors of many types
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def _take_over(generator: nn.Module, pretrained: nn.Module) -> None:
    """Starts a generator from a pre-trained network; its table of labels stays new."""
    known = generator.state_dict()
    state = {
        name: value
        for name, value in pretrained.state_dict().items()
        if name in known and not name.startswith("label_")
    }
    generator.load_state_dict({**known, **state})
