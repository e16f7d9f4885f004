"""Layouts of well-known image sets, on small files written here in exactly that layout."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from repertory import data
from repertory.errors import DataError


class Python2(pickle._Pickler):
    """Writes texts as Python 2 did: bytes without a type of their own."""

    dispatch = dict(pickle._Pickler.dispatch)

    def _text(self, value) -> None:
        encoded = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(encoded)) + encoded)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _text


def write_python2(path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2(file, protocol=2).dump(value)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def opened(path, options: str = "") -> data.Splits:
    return data.open(f"images:{path}{options}")


def test_reads_cifar_10_as_python_2_wrote_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for seed, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        rows = pixels(4, 3072, seed=seed)
        write_python2(folder / name, {"data": rows, "labels": [0, 1, 1, 0], "filenames": ["a.png"] * 4})
    write_python2(folder / "batches.meta", {"label_names": ["airplane", "automobile"], "num_vis": 3072})
    for path in (tmp_path, folder):
        splits = opened(path)
        assert len(splits.train) + len(splits.val) == 8
        assert sorted(splits.test.ids) == [f"test_batch/{i:05d}" for i in range(4)]
        assert splits.test.column("label").tolist() == ["airplane", "automobile", "automobile", "airplane"]
    image = np.asarray(splits.test.image(0))
    assert np.array_equal(image[..., 0], pixels(4, 3072, seed=2)[0, :1024].reshape(32, 32))
    write_python2(folder / "test_batch", {"data": pixels(4, 3072), "labels": [0, 1, 2, 0]})
    with pytest.raises(DataError, match="test_batch: 4 images, 4 labels, 2 classes"):
        opened(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(Image.open))
    with pytest.raises(DataError, match=r"test_batch: it holds PIL\.Image\.open, which is not read"):
        opened(tmp_path)


def test_reads_cifar_100(tmp_path):
    for name in ("train", "test"):
        rows = pixels(6, 3072, seed=len(name))
        write_python2(tmp_path / name, {"data": rows, "fine_labels": [0, 1, 2] * 2, "coarse_labels": [0, 0, 1] * 2})
    write_python2(tmp_path / "meta", {"fine_label_names": ["apple", "pear", "bus"],
                                      "coarse_label_names": ["fruit", "vehicle"]})  # fmt: skip
    assert set(opened(tmp_path).test.column("label")) == {"apple", "pear", "bus"}
    assert set(opened(tmp_path, "?classes=coarse").test.column("label")) == {"fruit", "vehicle"}
    with pytest.raises(DataError, match="classes=all: expected fine or coarse"):
        opened(tmp_path, "?classes=all")


def test_reads_stl_10(tmp_path):
    (tmp_path / "class_names.txt").write_text("airplane\nbird\n")
    made = pixels(6, 3, 96, 96)
    for part in ("train", "test"):
        made.tofile(tmp_path / f"{part}_X.bin")
        np.array([1, 2, 1, 2, 1, 2], np.uint8).tofile(tmp_path / f"{part}_y.bin")
    pixels(5, 3, 96, 96, seed=1).tofile(tmp_path / "unlabeled_X.bin")
    splits = opened(tmp_path)
    assert splits.test.column("label").tolist() == ["airplane", "bird"] * 3
    assert np.array_equal(np.asarray(splits.test.image(0))[..., 0], made[0, 0].T)
    free = opened(tmp_path, "?images=unlabelled")
    assert len(free.all) == 5
    assert "label" not in free.all.columns.column_names
    with pytest.raises(DataError, match="images=all: expected labelled or unlabelled"):
        opened(tmp_path, "?images=all")
    np.array([1, 2, 3], np.uint8).tofile(tmp_path / "test_y.bin")
    with pytest.raises(DataError, match=r"test_y\.bin: 6 labels in 1\.\.2 are needed"):
        opened(tmp_path)
    (tmp_path / "train_X.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"train_X\.bin: 3 bytes are no whole number of images"):
        opened(tmp_path)


def write_images(*paths, seed: int = 0) -> None:
    for i, path in enumerate(paths, start=seed):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(8, 8, 3, seed=i)).save(path, format="JPEG" if path.suffix == ".JPEG" else None)


def test_reads_tiny_imagenet(tmp_path):
    wnids = ["n01443537", "n01629819"]
    (tmp_path / "wnids.txt").write_text("\n".join(wnids) + "\n")
    write_images(*(tmp_path / "train" / w / "images" / f"{w}_{i}.JPEG" for w in wnids for i in range(4)))
    write_images(*(tmp_path / "val" / "images" / f"val_{i}.JPEG" for i in range(4)))
    rows = [f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t0\t62\t62\n" for i in range(4)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    splits = opened(tmp_path)
    assert sorted(splits.test.ids) == [f"val/images/val_{i}.JPEG" for i in range(4)]
    assert splits.test.column("label").tolist() == wnids * 2
    assert len(splits.train) + len(splits.val) == 8
    (tmp_path / "val" / "images" / "val_3.JPEG").rename(tmp_path / "gone.JPEG")
    with pytest.raises(DataError, match=r"val_3\.JPEG: no such image, but .*val_annotations\.txt"):
        opened(tmp_path)
    write_images(*(tmp_path / "val" / w / "images" / f"{w}_v.JPEG" for w in wnids))
    assert sorted(opened(tmp_path).test.ids) == [f"val/{w}/images/{w}_v.JPEG" for w in wnids]


def test_reads_imagenet_and_a_list_of_its_classes(tmp_path):
    wnids = [f"n0000000{i}" for i in range(3)]
    write_images(*(tmp_path / "train" / w / f"{w}_{i}.JPEG" for w in wnids for i in range(4)))
    write_images(*(tmp_path / "val" / w / f"v_{w}.JPEG" for w in wnids))
    assert len(opened(tmp_path).all) == 15
    (tmp_path / "some.txt").write_text(f"{wnids[2]} a name\n{wnids[0]}\n")
    for listed in ("some.txt", tmp_path / "some.txt"):
        splits = opened(tmp_path, f"?classes={listed}")
        assert len(splits.all) == 10
        assert set(splits.test.column("label")) == {wnids[0], wnids[2]}
    (tmp_path / "some.txt").write_text("n99999999\n")
    with pytest.raises(DataError, match="train: no folder of class 'n99999999'"):
        opened(tmp_path, "?classes=some.txt")


def test_reads_the_binary_cifar(tmp_path):
    made = pixels(12, 3072)
    names = ["apple", "bear", "cup"]
    labels = np.arange(12, dtype=np.uint8)[:, None] % 3
    hundred, ten = (tmp_path / name for name in ("cifar-100-binary", "cifar-10-batches-bin"))
    for folder in (hundred, ten):
        folder.mkdir()
    (hundred / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    (ten / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    rows = np.concatenate([labels * 0 + 7, labels, made], axis=1)
    for name, part in (("train", slice(0, 9)), ("test", slice(9, 12))):
        rows[part].tofile(hundred / f"{name}.bin")
    for name, part in (("data_batch_1", slice(0, 5)), ("data_batch_2", slice(5, 9)), ("test_batch", slice(9, 12))):
        rows[part, 1:].tofile(ten / f"{name}.bin")
    for folder in (hundred, ten):
        splits = opened(folder)
        assert splits.test.column("label").tolist() == names
        assert len(splits.all) == 12
        shown = np.asarray(splits.all.image(0))
        assert np.array_equal(shown[..., 0].ravel(), made[0, :1024])
        assert np.array_equal(shown[..., 2].ravel(), made[0, 2048:])
    rows[:2].ravel()[:-1].tofile(hundred / "test.bin")
    with pytest.raises(DataError, match=r"test\.bin: 6147 bytes are not rows of 3074"):
        opened(hundred)
    (hundred / "test.bin").unlink()
    with pytest.raises(DataError, match=r"test\.bin: 0 bytes are not rows of 3074"):
        opened(hundred)


def test_reads_inaturalist(tmp_path):
    for part, count in (("train", 9), ("val", 3)):
        names = [f"{part}_val2019/Plants/{i}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            write_images(tmp_path / name, seed=100 * count + i)
        (tmp_path / f"{part}2019.json").write_text(json.dumps({
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"image_id": i, "category_id": i % 3} for i in range(count)],
            "categories": [{"id": k, "name": f"species {k}", "genus": f"genus {k % 2}"} for k in range(3)],
        }))  # fmt: skip
    splits = opened(tmp_path)
    assert splits.test.column("label").tolist() == ["species 0", "species 1", "species 2"]
    assert set(opened(tmp_path, "?category=genus").all.column("label")) == {"genus 0", "genus 1"}
    with pytest.raises(DataError, match="its categories have no 'order'"):
        opened(tmp_path, "?category=order")
    (tmp_path / "val2019.json").write_text("{}")
    with pytest.raises(DataError, match=r"val2019\.json: not iNaturalist's annotations: KeyError 'images'"):
        opened(tmp_path)
