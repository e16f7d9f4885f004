"""Pictures and latents as batches, and the layouts of the paper's data: latents, and ImageNet as Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from repertory.data import Preview, Reader, digest, finite
from repertory.data.images import Images, decode
from repertory.data.splits import NAMES
from repertory.data.transforms.images import Transform, plain
from repertory.errors import DataError, UserError, first_line

LATENT_SCALE = 0.18215
"""What latents of Stable Diffusion's auto-encoder are multiplied by to have unit variance."""


class Pictures(Images):
    """Pictures that :meth:`write` can write, in folders by class where they have one."""

    def write(self, folder: str | Path) -> list[Path]:
        """Writes each as a PNG named by its id.

        Raises:
            DataError: a file is there already, or an id leads out of the folder; nothing is written then.
        """
        root = Path(folder)
        label = self.roles.get("label", ())
        classes = [""] * len(self) if len(label) != 1 else [str(value) for value in self.column(label[0])]
        paths = [root / of / f"{name}.png" for of, name in zip(classes, self.ids, strict=True)]
        for path in paths:
            if not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{path.name}: as a file name, this id leads out of {root}")
            if path.exists():
                raise DataError(f"{path}: is there already: choose another folder")
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.image(i).save(path)
        return paths


class Latents(Images):
    """Latents ``[H, W, C]`` float32 of a variational auto-encoder, in place of the images themselves."""

    def latent(self, index: int) -> np.ndarray:
        """Latent ``index``, ``[H, W, C]``."""
        return self.sources[index]

    def check(self, index: int) -> str:
        latent = finite(np.asarray(self.latent(index), dtype=np.float32), "the latent")
        if latent.ndim != 3 or latent.shape[0] != latent.shape[1]:
            raise DataError(f"shape {list(latent.shape)}: a latent is [H, H, C]")
        if latent.min() == latent.max():
            raise DataError(f"constant latent: every value is {latent.min():.3g}")
        return digest(f"latent{latent.shape}", latent.tobytes())

    def image(self, index: int) -> Image.Image:
        """The first three channels as colours, since nothing here decodes them."""
        shown = self.latent(index)[..., :3]
        low, high = np.percentile(shown, [1, 99])
        grey = ((shown - low) / max(high - low, 1e-6)).clip(0, 1)
        grey = grey if grey.shape[-1] == 3 else np.repeat(grey[..., :1], 3, axis=-1)
        return Image.fromarray(np.round(255 * grey).astype(np.uint8))

    def preview(self, index: int) -> Preview:
        return Preview(image=self.image(index))

    def write(self, folder: str | Path) -> list[Path]:
        """Writes all into ``latents.npz``, which :func:`read_latents` reads.

        Raises:
            DataError: the file is there already.
        """
        path = Path(folder) / "latents.npz"
        if path.exists():
            raise DataError(f"{path}: is there already: choose another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: self.columns[name].to_numpy() for name in self.columns.column_names}
        texts = {name: values.astype(str) if values.dtype == object else values for name, values in columns.items()}
        np.savez(path, latents=np.stack(self.sources), id=self.ids.astype(str), **texts)
        return [path]


def _holds_latents(path: Path) -> bool:
    if path.suffix != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return "latents" in file.files
    except Exception:  # a damaged file; the next reader says so
        return False


def read_latents(path: Path, scale: float = 1.0) -> Latents:
    """An ``.npz`` file with ``latents`` ``[N, H, H, C]``, and ``label``, ``id`` and others with a value each if known.

    ``scale`` multiplies them: 0.18215 for the latents that Stable Diffusion's auto-encoder gives; 1 where the file
    holds them scaled.
    """
    with np.load(path, allow_pickle=False) as file:
        try:
            arrays = {name: file[name] for name in file.files}
        except ValueError as error:
            raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
    latents = arrays.pop("latents")
    if latents.ndim != 4 or latents.dtype.kind != "f":
        raise DataError(f"{path}: 'latents' is {latents.dtype} {list(latents.shape)}; float [N, H, H, C] is needed")
    ids = arrays.pop("id", None)
    for name, values in arrays.items():
        if values.shape != (len(latents),):
            raise DataError(f"{path}: '{name}' has shape {list(values.shape)}; [{len(latents)}] is needed")
    names = [f"{i:0{len(str(len(latents)))}d}" for i in range(len(latents))] if ids is None else ids.tolist()
    roles = {"label": ("label",)} if "label" in arrays else {}
    return Latents(names, list(latents.astype(np.float32) * np.float32(scale)), arrays, roles)


class EncodedPictures(Pictures):
    """Pictures whose sources are the bytes of encoded files."""

    def image(self, index: int) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self.sources[index])) as opened:
                opened.load()
                return decode(opened.copy())
        except OSError as error:
            raise DataError(f"cannot be decoded: {first_line(error)}") from None


def _parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def _holds_encoded(path: Path) -> bool:
    files = _parquet_files(path) if path.is_dir() or path.suffix == ".parquet" else []
    if not files:
        return False
    try:
        kind = pq.read_schema(files[0])
    except (pa.ArrowException, OSError):  # damaged; the next reader says so
        return False
    return "image" in kind.names and pa.types.is_struct(kind.field("image").type)


def read_encoded(path: Path) -> EncodedPictures:
    """Parquet files as the Hugging Face hub has ImageNet: ``image`` ``{bytes, path}`` and ``label``; held in memory.

    A file that is named ``train-...``, ``validation-...`` or ``test-...`` is that split.
    """
    ids: list[str] = []
    sources: list[bytes] = []
    tables, parts = [], []
    for file in _parquet_files(path):
        table = pq.read_table(file)
        if "image" not in table.column_names:
            raise DataError(f"{file}: no column 'image'")
        for row, cell in enumerate(table["image"].to_pylist()):
            if not cell or not cell.get("bytes"):
                raise DataError(f"{file}: row {row} holds no image bytes")
            ids.append(f"{file.stem}/{row}")
            sources.append(cell["bytes"])
        tables.append(table.drop_columns("image"))
        parts += [NAMES.get(file.name.split("-")[0].lower(), "")] * len(table)
    columns = pa.concat_tables(tables, promote_options="permissive")
    if "split" not in columns.column_names and all(parts) and len(set(parts)) > 1:
        columns = columns.append_column("split", pa.array(parts))
    roles = {"label": ("label",)} if "label" in columns.column_names else {}
    return EncodedPictures(ids, sources, columns, roles)


READERS = (
    Reader("latents", "an .npz with latents [N, H, H, C]", _holds_latents, read_latents),
    Reader("hub-parquet", "Parquet files with image {bytes, path} and label", _holds_encoded, read_encoded),
)


@dataclass(frozen=True)
class Held:
    """From item numbers to a batch of images that are held in memory, ``[N, C, H, W]``, with their labels ``[N]``."""

    images: Tensor
    labels: Tensor | None = None

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        places = torch.as_tensor(np.asarray(rows))
        batch = {"images": self.images[places]}
        if self.labels is not None:
            batch["labels"] = self.labels[places]
        return batch


def stacked(items: Latents) -> Tensor:
    """All latents, ``[N, C, H, H]``."""
    return torch.from_numpy(np.stack(items.sources)).movedim(-1, 1).contiguous()


_pixels: WeakKeyDictionary[Images, dict[tuple[int, int], Tensor]] = WeakKeyDictionary()


def pixels(items: Images, size: int, channels: int) -> Tensor:
    """All pictures in -1..1, ``[N, channels, size, size]``: whole, or the centre of longer ones.

    They are kept as long as ``items`` are there, since small pictures take longer to decode than to learn from.
    """
    known = _pixels.setdefault(items, {})
    if (size, channels) not in known:
        transform = as_they_are(size, channels)
        known[size, channels] = torch.stack([transform(items.image(i)) for i in range(len(items))])
    return known[size, channels]


def as_they_are(size: int, channels: int) -> Transform:
    """Pictures in -1..1 without augmentation."""
    return plain(size, (0.5,) * channels, (0.5,) * channels, crop=1.0)


# -- the auto-encoder of latents -------------------------------------------------------------------------------------


def load_vae(address: str) -> Any:
    """diffusers' ``AutoencoderKL`` at a folder or a name of the hub.

    Raises:
        UserError: no address, diffusers is not installed, or the weights cannot be had.
    """
    if not address:
        raise UserError("images become latents by a variational auto-encoder: name it with vae=FOLDER, or give latents")
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(f"vae={address}: diffusers is not installed: pip install diffusers, or give latents") from None
    try:
        return AutoencoderKL.from_pretrained(address).eval().requires_grad_(False)
    except Exception as error:  # hub, network and format errors of many types
        raise UserError(f"vae={address}: cannot be loaded: {first_line(error)}") from None


@torch.inference_mode()
def latents_of(images: Images, vae: Any, side: int = 256, batch_size: int = 16) -> Latents:
    """Latents of pictures of ``side`` pixels: the mean of the auto-encoder's posterior, scaled."""
    transform = as_they_are(side, 3)
    made: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        rows = range(start, min(start + batch_size, len(images)))
        pixels = torch.stack([transform(images.image(i)) for i in rows])
        latents = vae.encode(pixels).latent_dist.mean * LATENT_SCALE
        made += list(latents.movedim(1, -1).float().cpu().numpy())
    return Latents(images.ids.tolist(), made, images.columns, images.roles)


@torch.inference_mode()
def pictures_of(latents: Tensor, vae: Any, batch_size: int = 16) -> Tensor:
    """Scaled latents ``[N, C, H, H]`` to pictures ``[N, 3, 8 H, 8 H]`` in -1..1."""
    parts = latents.split(batch_size)
    return torch.cat([vae.decode(part / LATENT_SCALE).sample.float().cpu().clamp(-1, 1) for part in parts])


def to_bytes(images: Tensor) -> list[np.ndarray]:
    """Images ``[N, C, H, W]`` in -1..1 as uint8 ``[H, W]`` (C 1) or ``[H, W, 3]``."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    return [p[..., 0] if p.shape[-1] == 1 else p for p in pixels]
