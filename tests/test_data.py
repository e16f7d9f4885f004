"""Opening data: sources, readers, checks, splits."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repertory import data
from repertory.data import KINDS, Reader, Splits
from repertory.data.images import Images
from repertory.data.manifest import Manifest, Modality
from repertory.data.music import Music
from repertory.data.notes import write_midi
from repertory.data.source import Source
from repertory.errors import DataError

RNG = np.random.default_rng(0)


def pixels(n=12, side=6):
    return np.random.default_rng(n).integers(0, 256, (n, side, side), dtype=np.uint8)


def save(path, array=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8) if array is None else array
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def table(tmp_path):
    """Twelve images named by a table, in a folder whose name is not ASCII."""
    folder = tmp_path / "Bilder ü"
    for i in range(12):
        save(folder / f"img/é{i}.png", seed=i)
    return folder, pd.DataFrame({
        "path": [f"img/é{i}.png" for i in range(12)], "species": list("abc") * 4, "age": range(12),
        "patient": [f"{i // 2:03d}" for i in range(12)], "id": [f"{i:03d}" for i in range(12)],
    })  # fmt: skip


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# -- sources -----------------------------------------------------------------------------------------


def test_source_text():
    parsed = Source.parse("images:a/b?label=x,y&on_error=skip&text=", tuple(KINDS))
    assert (parsed.kind, parsed.target) == ("images", "a/b")
    assert parsed.options == {"label": "x,y", "on_error": "skip", "text": ""}
    assert Source.parse("bach-chorales", tuple(KINDS)).kind is None
    assert Source.parse("C:\\data", tuple(KINDS)).target == "C:\\data"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("imagez:a", "unknown kind 'imagez'"),
        ("a?label", "write option=value"),
        ("a?label=x&label=y", "given twice"),
        ("images:", "neither a path nor a sample"),
        ("", "neither a path nor a sample"),
        ("no/such.yaml", "no such file"),
    ],
)
def test_source_errors(source, says):
    with pytest.raises(DataError, match=says):
        Source.parse(source, tuple(KINDS))


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=3))
@settings(max_examples=50, deadline=None)
def test_address_names_the_same(options):
    made = Source("x", "some/where", "images", options)
    again = Source.parse(made.address, tuple(KINDS))
    assert (again.kind, again.target, again.options) == ("images", "some/where", options)


def test_address_is_independent_of_the_working_directory(table, monkeypatch):
    folder, frame = table
    frame.to_csv(folder / "t.csv", index=False)
    monkeypatch.chdir(folder)
    splits = data.open("images:t.csv", label="species", split="group:patient")
    monkeypatch.chdir("/")
    again = data.open(splits.source)
    assert again.fingerprint == splits.fingerprint
    assert again.all.roles == splits.all.roles
    assert (again.membership == splits.membership).all()


def test_a_path_with_a_question_mark(tmp_path):
    save(tmp_path / "why?" / "a.png"), save(tmp_path / "why?" / "b.png", seed=1)
    assert len(data.open(tmp_path / "why?", "images").all) == 2


def test_yaml_with_parts(tmp_path, monkeypatch):
    for part, n in (("one", 6), ("two", 4)):
        for i in range(n):
            save(tmp_path / part / "ab"[i % 2] / f"{i}.png", seed=n * 10 + i)
    (tmp_path / "d.yaml").write_text("kind: images\ntrain: images:one\ntest: two\n")
    splits = data.open(tmp_path / "d.yaml", "images")
    assert (len(splits.test), len(splits.train) + len(splits.val)) == (4, 6)
    assert splits.test.ids.tolist()[0] == "test/a/0.png"  # the ids occur twice
    monkeypatch.chdir("/")
    assert data.open(splits.source).fingerprint == splits.fingerprint


def test_yaml_options_hold_for_all_parts(tmp_path):
    for part in ("one", "two"):
        for i in range(4):
            save(tmp_path / part / f"{i}.png", seed=i + 10 * (part == "two"))
        frame = pd.DataFrame({"path": [f"{part}/{i}.png" for i in range(4)], "y": [0, 1, 0, 1], "z": [1, 1, 0, 0]})
        frame.to_csv(tmp_path / f"{part}.csv", index=False)
    source = tmp_path / "d.yml"
    source.write_text("kind: images\ntrain: one.csv\ntest: two.csv\nlabel: [y, z]\n")
    splits = data.open(source)
    assert splits.all.roles["label"] == ("y", "z")
    assert splits.test.labels().tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    source.write_text("kind: images\ntrain: one.csv\ntest: two.csv\nlabel: nope\n")
    with pytest.raises(DataError, match="no column 'nope'"):
        data.open(source)
    for wrong, says in (
        ("split: random", "names the splits itself"),
        ("path: one", "not both"),
        ("colour: x", "colour"),
    ):
        source.write_text(f"kind: images\ntrain: one.csv\ntest: two.csv\n{wrong}\n")
        with pytest.raises(DataError, match=says):
            data.open(source)


def test_yaml_query_is_part_of_the_address(tmp_path):
    for i in range(6):
        save(tmp_path / "x" / f"{i}.png", seed=i)
    pd.DataFrame({"path": [f"x/{i}.png" for i in range(6)], "y": range(6), "t": range(6)}).to_csv(tmp_path / "x.csv")
    (tmp_path / "d.yaml").write_text("kind: images\npath: x.csv\nlabel: y\n")
    splits = data.open(f"{tmp_path}/d.yaml?split=time:t")
    again = data.open(splits.source)
    assert (again.rule, again.all.roles) == ("time:t", {"label": ("y",)})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "label: x", "\x00"])
def test_broken_yaml(tmp_path, text):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(DataError) as error:
        data.open(tmp_path / "d.yaml", "images")
    assert "d.yaml" in one_line(error)


def test_options_of_objects_in_memory():
    frame = pd.DataFrame({"text": ["a b", "c", "d"], "title": ["x", "y", "z"], "y": [0, 1, 0]})
    splits = data.open(frame, "manifest", label="y")
    assert splits.all.labels().tolist() == [0, 1, 0]
    assert splits.source == "memory"
    for source in (frame, splits.all, splits):
        with pytest.raises(DataError, match="colour"):
            data.open(source, "manifest", colour="red")
    with pytest.raises(DataError, match="label"):
        data.open(splits, label="y")
    for source in (splits, splits.all):
        with pytest.raises(DataError, match="manifest given, images needed"):
            data.open(source, "images")


def test_kinds_are_not_mistaken(table):
    folder, frame = table
    frame.to_csv(folder / "t.csv")
    with pytest.raises(DataError, match="manifest given, images needed"):
        data.open(f"manifest:{folder}/t.csv", "images")
    with pytest.raises(DataError, match="say which kind"):
        data.open(str(folder))
    with pytest.raises(DataError, match="did you mean 'images'"):
        data.kind_of("image")


def test_nearest_names(table):
    folder, frame = table
    frame.to_csv(folder / "t.csv")
    for query, nearest in (("imag=path", "image"), ("label=specis", "species"), ("layout=tabel", "table"),
                           ("on_error=ignore", "raise or skip"), ("max_bad=lots", "a share")):  # fmt: skip
        with pytest.raises(DataError, match=nearest):
            data.open(f"images:{folder}/t.csv?{query}")
    with pytest.raises(DataError, match="did you mean 'spoken-numbers'"):
        data.open("spoken-number", "manifest")


def test_reader_options_have_types(tmp_path):
    seen = {}

    def read(path, deep: bool = False, size: int = 3, share: float = 0.5):
        seen.update(deep=deep, size=size, share=share)
        return Images.wrap(pixels())

    readers = (Reader("mine", "", lambda p: True, read),)
    data.open(f"{tmp_path}?deep=false&size=4&share=1", "images", readers)
    assert seen == {"deep": False, "size": 4, "share": 1.0}
    for wrong in ("deep=maybe", "size=2.5"):
        with pytest.raises(DataError, match="expected"):
            data.open(f"{tmp_path}?{wrong}", "images", readers)


# -- images -------------------------------------------------------------------------------------------


def test_folder_by_class_and_by_split(tmp_path):
    for part, n in (("train", 6), ("Validation", 2), ("test", 2)):
        for label in ("ähre", "ball"):
            for i in range(n):
                save(tmp_path / part / label / f"{i}.png", seed=hash((part, label, i)) % 1000)
    whole = data.open(tmp_path, "images")
    assert whole.rule == "source"
    assert [len(p) for p in (whole.train, whole.val, whole.test)] == [12, 4, 4]
    assert set(whole.all.labels()) == {"ähre", "ball"}
    part = data.open(tmp_path / "train", "images")
    assert part.rule == "random"
    assert len(part.all) == 12
    save(tmp_path / "cover.png")
    with pytest.raises(DataError, match="beside the splits"):
        data.open(tmp_path, "images")


def test_fingerprint_is_independent_of_location_and_order(tmp_path):
    for folder in ("a", "b/c"):
        for i in range(5):
            save(tmp_path / folder / f"{i}.png", seed=i)
    first, second = (data.open(tmp_path / f, "images").all for f in ("a", "b/c"))
    assert first.fingerprint == second.fingerprint == first.take([4, 2, 0, 1, 3]).fingerprint
    assert first.fingerprint != first.take([0, 1, 2, 3]).fingerprint
    save(tmp_path / "a/0.png", seed=9)
    assert data.open(tmp_path / "a", "images").fingerprint != second.fingerprint


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet"])
def test_image_tables(table, name):
    folder, frame = table
    if name.endswith("parquet"):
        frame.to_parquet(folder / name)
    else:
        frame.to_csv(folder / name, index=False, sep="\t" if "tsv" in name else ",")
    splits = data.open(f"images:{folder}/{name}?label=species&group=patient")
    assert len(splits.all) == 12
    assert splits.rule == "group:patient"
    assert splits.all.ids[3] == "img/é3.png"
    assert splits.all.labels().tolist() == list("abc") * 4
    assert data.open(f"images:{folder}/{name}?id=id").all.ids.tolist() == frame["id"].tolist()  # 007 stays 007


def test_image_table_errors(table):
    folder, frame = table
    wrong = {
        "no column of image paths": frame.rename(columns={"path": "where"}),
        "row 2 names no image": frame.assign(path=frame["path"].where(frame.index != 2)),
        "occurs 2 times": pd.concat([frame, frame[:1]]),
        "é3.png: no such file": frame.replace("img/é3.png", "img/none/é3.png"),
        "empty": frame[:0],
    }
    for says, changed in wrong.items():
        changed.to_csv(folder / "t.csv", index=False)
        with pytest.raises(DataError, match=says):
            data.open(folder / "t.csv", "images")
    frame.assign(id=["a", None, *frame["id"][2:]]).to_csv(folder / "t.csv", index=False)
    with pytest.raises(DataError, match="row 1 is empty"):
        data.open(f"images:{folder}/t.csv?id=id")
    whole = gzip.compress(frame.to_csv().encode())
    for name, content in (
        ("t.csv.gz", whole[:-20]),
        ("t.csv.gz", b"no"),
        ("t.parquet", b"PAR1"),
        ("t.csv", b"\xff\xfe"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            data.open(folder / name, "images")
        assert name in one_line(error)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=pixels(), label=np.arange(12) % 3, id=np.arange(12) + 100, site=np.array(list("ab") * 6))
    items = data.open(path, "images").all
    assert items.ids.tolist()[:2] == ["100", "101"]
    assert items.labels().tolist() == [0, 1, 2] * 4
    assert items.columns.column_names == ["label", "site"]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"x\.npz: cannot be read"):
        data.open(path, "images")
    for arrays, says in (
        ({"img": pixels()}, "no array 'images'"),
        ({"images": pixels(), "label": np.arange(11)}, "label"),
        ({"images": np.array([{}], object)}, "cannot be read"),
        ({"images": np.zeros(3)}, "x.npz: an array"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=says):
            data.open(path, "images")


def test_images_in_memory():
    grey, colour = pixels(4), RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    for source in (grey, grey[..., None], list(grey), [Image.fromarray(g) for g in grey], torch.from_numpy(grey),
                   torch.from_numpy(grey)[:, None], grey / np.float32(255)):  # fmt: skip
        items = Images.wrap(source)
        assert (np.asarray(items.image(2)) == grey[2]).all(), type(source)
    tall = torch.from_numpy(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    assert Images.wrap(tall).image(0).size == (3, 6)
    assert (np.asarray(Images.wrap(torch.from_numpy(colour).permute(0, 3, 1, 2)).image(1)) == colour[1]).all()
    assert Images.wrap((grey, ["a", "b", "a", "b"])).labels().tolist() == ["a", "b", "a", "b"]
    for wrong in (grey[0][0], [1, 2], (grey, [1]), {"a": 1}, [np.zeros((2, 2, 7))]):
        with pytest.raises(DataError):
            data.open(wrong, "images")
    for bad in (
        np.full((6, 6), np.nan),
        np.full((6, 6), 7, np.uint8),
        np.full((6, 6), 1.5),
        np.zeros((0, 3), np.uint8),
    ):
        with pytest.raises(DataError, match=r"memory: 4: "):
            data.open([*grey, bad], "images")


def test_sixteen_bits_and_modes(tmp_path):
    deep = (np.arange(36).reshape(6, 6) * 1000 + 500).astype(np.uint16)
    save(tmp_path / "a.png", deep)
    Image.fromarray(deep).save(tmp_path / "b.tif")
    Image.fromarray(pixels(1)[0]).convert("P").save(tmp_path / "c.gif")
    items = data.open(tmp_path, "images").all
    for i in (0, 1):
        assert np.asarray(items.image(i))[0, 0] == 0
        assert np.asarray(items.image(i))[-1, -1] == 255
    assert items.image(2).mode in ("L", "RGB")


def test_truncated_files(tmp_path):
    for i, suffix in enumerate(("png", "jpg", "tif", "gif", "bmp", "webp")):
        path = save(tmp_path / suffix / f"x.{suffix}", RNG.integers(0, 256, (64, 64), dtype=np.uint8))
        content = path.read_bytes()
        for keep in (0, 3, len(content) // 3):
            path.write_bytes(content[:keep])
            with pytest.raises(DataError) as error:
                data.open(tmp_path / suffix, "images")
            assert f"x.{suffix}" in one_line(error), (suffix, i)


def dicom(path, array, photometric="MONOCHROME2", **tags):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    made = pydicom.dataset.Dataset()
    made.file_meta = meta
    made.Rows, made.Columns = array.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, photometric
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, int(array.dtype.kind == "i")
    made.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def test_dicom(tmp_path):
    ramp = (np.arange(64).reshape(8, 8) * 10).astype(np.uint16)
    dicom(tmp_path / "a.dcm", ramp), dicom(tmp_path / "b.dcm", ramp, "MONOCHROME1")
    items = data.open(tmp_path, "images").all
    straight, inverted = np.asarray(items.image(0)), np.asarray(items.image(1))
    assert (straight.min(), straight.max()) == (0, 255)
    assert (straight == 255 - inverted).all()


def test_dicom_windows_are_in_units_of_the_modality(tmp_path):
    hounsfield = np.linspace(-1000, 1000, 64).reshape(8, 8)
    path = dicom(tmp_path / "ct.dcm", np.round(hounsfield + 1024).astype(np.uint16), RescaleSlope="1",
                 RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")  # fmt: skip
    shown = np.asarray(Images(["ct"], [path]).image(0))
    assert (shown[hounsfield < -170] == 0).all()
    assert (shown[hounsfield > 250] == 255).all()
    assert 0 < shown[np.abs(hounsfield - 40) < 50].mean() < 255


def test_broken_dicom(tmp_path):
    path = dicom(tmp_path / "x.dcm", (np.arange(64).reshape(8, 8)).astype(np.uint16))
    content = path.read_bytes()
    for spoiled in (b"", content[:50], content[:200], content[:-40], b"\0" * 400):
        path.write_bytes(spoiled)
        with pytest.raises(DataError) as error:
            data.open(tmp_path, "images")
        assert "x.dcm" in one_line(error)


# -- manifests -----------------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", seed=i)
    return tmp_path, pd.DataFrame({
        "id": ["001", "002", "003", "004"], "photo": ["0.png", "1.png", None, "3.png"],
        "report": ["all clear", None, "some shadow", " "], "age": [40, 50, 60, 70], "label": ["y", "n", "y", "n"],
    })  # fmt: skip


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_manifest_table_with_gaps(reports, name):
    folder, frame = reports
    frame.to_csv(folder / name, index=False) if name.endswith("csv") else frame.to_parquet(folder / name)
    items = data.open(folder / name, "manifest").all
    assert {n: m.kind for n, m in items.modalities.items()} == {"photo": "image", "report": "text"}
    assert items.ids.tolist() == ["001", "002", "003", "004"]
    assert items.present.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    assert items.columns.column_names == ["age", "label"]
    named = data.open(f"manifest:{folder}/{name}?image=photo&text=report,label").all
    assert list(named.modalities) == ["photo", "report", "label"]
    taken = items.take([3, 0])
    assert taken.modalities["report"].index.tolist() == [-1, items.modalities["report"].index[0]]
    assert items.present.shape == (4, 2)


def test_manifest_errors(reports):
    folder, frame = reports
    for query, changed, says in (
        ("", frame.drop(columns="photo"), "at least two"),
        (
            "",
            frame.assign(photo=[None, "1.png", None, "3.png"], report=["a b c d", "b", None, "d"]),
            "003: every modality",
        ),
        ("?image=phot&text=report", frame, "did you mean 'photo'"),
        ("?image=age&text=report", frame, "001: age: no such file"),
        ("?vector=report,age", frame, "arrays of numbers"),
        ("?vector=age&text=report", frame, "not a vector"),
        ("?id=photo&image=photo&text=report", frame, "row 2 is empty"),
        ("?id=ident", frame, "no column 'ident'"),
    ):
        changed.to_csv(folder / "m.csv", index=False)
        with pytest.raises(DataError, match=says) as error:
            data.open(f"manifest:{folder}/m.csv{query}")
        one_line(error)
    with pytest.raises(DataError, match="mixes types"):
        data.open(frame.assign(age=[1, "a", b"", 2.5], report="some words here now", title="a"), "manifest")


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_feature_tables(tmp_path, suffix):
    image = RNG.random((6, 4), np.float32)
    image[2] = np.nan  # a row of NaN is missing
    arrays = {"image": image, "text": RNG.random((6, 3), np.float32), "label": np.arange(6) % 2, "id": np.arange(6) + 7}
    path = tmp_path / f"x.{suffix}"
    np.savez(path, **arrays) if suffix == "npz" else torch.save({k: torch.tensor(v) for k, v in arrays.items()}, path)
    items = data.open(path, "manifest").all
    assert items.present[:, 0].tolist() == [True, True, False, True, True, True]
    assert items.ids.tolist() == list("789") + ["10", "11", "12"]
    assert items.labels().tolist() == [0, 1] * 3
    spoiled = image.copy()
    spoiled[3, 1] = np.nan
    with pytest.raises(DataError, match=r"3: a: .*holds nan at \(1,\)"):
        data.open({"a": spoiled, "b": np.ones((6, 2))}, "manifest")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"x.{suffix}: cannot be read"):
        data.open(path, "manifest")
    for wrong in ({}, {"a": image}, {"a": image, "b": image[:3]}, {"a": image, "b": np.ones((6, 2), int)}):
        with pytest.raises(DataError):
            data.open(wrong, "manifest")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_malicious_files_execute_nothing(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"a": torch.ones(3, 2), "b": Payload(mark)}, tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", a=np.ones((3, 2)), b=np.array([Payload(mark)] * 3, object))
    for name in ("x.pt", "x.npz"):
        with pytest.raises(DataError, match="cannot be read") as error:
            data.open(tmp_path / name, "manifest")
        one_line(error)
    assert not mark.exists()


def test_items_join(tmp_path):
    one = Images(["a", "b"], list(pixels(2)), {"y": [1, 2]}, {"label": ("y",)})
    two = Images(["c", "d", "e"], list(pixels(3)))
    for parts in ([one, two], [two, one]):
        joined = Images.concat(parts, ["train", "test"])
        assert len(joined.columns) == 5
        assert joined.column("y")[joined.ids == "b"].item() == 2
        assert joined.roles == {"label": ("y",)}
    with pytest.raises(DataError, match="do not fit together"):
        Images.concat([one, Images(["z"], list(pixels(1)), {"y": ["text"]})], ["train", "test"])
    text = Modality("text", ["x", "y"], np.array([1, 0]))
    with pytest.raises(DataError, match="no modality 't'"):
        Manifest.concat([Manifest(["a", "b"], {"t": text}), Manifest(["c", "d"], {"u": text})], ["p", "q"])


# -- items ---------------------------------------------------------------------------------------------


def test_take_copies():
    items = Images([3, 4, 5], list(pixels(3)), {"y": [3, 4, 5]})
    assert items.ids.tolist() == ["3", "4", "5"]  # ids are texts
    before = items.fingerprint
    part = items.take([2, 0])
    part.sources[0] = None
    part.ids[0] = "x"
    assert items.sources[2] is not None
    assert items.ids[2] == "5"
    assert part.column("y").tolist() == [5, 3]
    assert items.take([2, 0]).fingerprint != before == items.take([0, 1, 2]).fingerprint
    assert items.take([]).columns.num_rows == len(items.take([])) == 0
    assert items.take(np.array([True, False, True])).ids.tolist() == ["3", "5"]
    with pytest.raises(IndexError):
        items.take([True, False])


def test_items_refuse_nonsense():
    for ids, columns, says in ((["a", "a"], None, "'a' occurs 2 times"), ([1, "1"], None, "'1' occurs"),
                               (["a", "b"], {"y": [1]}, "2 items but 1 rows"),
                               (["a", "b"], {"y": np.array([1, "x"], object)}, "column 'y'")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            Images(ids, list(pixels(2)), columns)
    with pytest.raises(DataError, match="must hold numbers"):
        Images(["a"], list(pixels(1)), {"y": ["m"], "z": [1]}, {"label": ("y", "z")}).labels()


def test_opening_does_not_change_items():
    items = Images.wrap((pixels(), np.arange(12) % 2))
    roles = dict(items.roles)
    assert data.open(items, "images", label="label", group="label", split="random").all.roles != roles
    assert items.roles == roles
    frame = pd.DataFrame({"text": ["a", "b", "c"], "title": ["x", "y", "z"]})
    before = frame.copy()
    data.open(frame, "manifest")
    pd.testing.assert_frame_equal(frame, before)


def test_bad_items_are_left_out_when_asked(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "4x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"4x\.png: cannot be decoded"):
        data.open(tmp_path, "images")
    with pytest.raises(DataError, match="1 of 10 items are unusable"):
        data.open(tmp_path, "images", on_error="skip")
    splits = data.open(f"images:{tmp_path}?on_error=skip&max_bad=0.1")
    assert [r.id for r in splits.rejected] == ["4x.png"]
    assert len(splits.all) == 9
    assert splits.all.ids.tolist() == [f"{i}.png" for i in range(9)]
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="no item is usable"):
        data.open(tmp_path, "images", on_error="skip", max_bad=1)


def test_music_folder_with_a_broken_file(tmp_path):
    pytest.importorskip("mido")
    (tmp_path / "sub").mkdir()
    for i in range(4):
        write_midi(np.array([[0, 1, 60 + i], [1, 1, 64]]), tmp_path / f"sub/p{i}.mid")
    (tmp_path / "broken.mid").write_bytes(b"MThd")
    with pytest.raises(DataError, match=r"broken\.mid: .*not a readable MIDI file") as error:
        data.open(tmp_path, "music")
    one_line(error)
    splits = data.open(f"music:{tmp_path}?on_error=skip&max_bad=0.5")
    assert splits.all.ids.tolist() == [f"sub/p{i}" for i in range(4)]
    assert splits.all.pieces[2].notes[0].tolist() == [0, 1, 62]
    assert len(Music.wrap([np.array([[0, 1, 60]])])) == 1


# -- splits -----------------------------------------------------------------------------------------------


def blank(n, **columns):
    """Items that are not read: only how they are divided matters."""
    items = Images([f"{i:04d}" for i in range(n)], [None] * n, columns)
    items.digests = np.zeros((n, 16), np.uint8)
    return items


@given(st.integers(3, 200), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_random_split_ignores_the_order_of_rows(n, random):
    items = blank(n)
    order = list(range(n))
    random.shuffle(order)
    parts = Splits(items, "x").membership
    assert (Splits(items.take(order), "x").membership == parts[order]).all()
    assert set(parts) == {"train", "val", "test"}
    for part in ("val", "test"):
        assert abs((parts == part).sum() - max(n / 10, 1)) <= 1


@given(st.lists(st.integers(0, 30), min_size=3, max_size=120).filter(lambda g: len(set(g)) >= 3))
@settings(max_examples=60, deadline=None)
def test_groups_stay_together(groups):
    parts = Splits(blank(len(groups), g=groups), "x", "group:g").membership
    sides = {g: {p for p, h in zip(parts, groups, strict=True) if h == g} for g in groups}
    assert all(len(side) == 1 for side in sides.values())
    assert set(parts) == {"train", "val", "test"}


def test_a_huge_group_is_trained_on():
    for big in "abcdefgh":
        groups = [big] * 95 + [f"{big}{i}" for i in range(5)]
        parts = Splits(blank(100, g=groups), "x", "group:g").membership
        assert (parts[:95] == "train").all()


@given(st.lists(st.integers(0, 40), min_size=3, max_size=120).filter(lambda t: len(set(t)) >= 3))
@settings(max_examples=60, deadline=None)
def test_time_puts_the_latest_into_test(times):
    parts, times = Splits(blank(len(times), t=times), "x", "time:t").membership, np.array(times)
    assert times[parts == "train"].max() < times[parts == "val"].min()
    assert times[parts == "val"].max() < times[parts == "test"].min()


def test_times_as_texts():
    times = ["2023-12-31", "2024-01-02T03:00", "2024-01-10", "2022"]
    assert Splits(blank(4, t=times), "x", "time:t").membership.tolist() == ["train", "val", "test", "train"]
    with pytest.raises(DataError, match="2024-01-31") as error:
        _ = Splits(blank(3, t=["1/2/2020", "3/1/2019", "x"]), "x", "time:t").membership
    one_line(error)
    dates = pa.array([3, 1, 2], pa.date32())
    assert Splits(blank(3, t=dates), "x", "time:t").membership.tolist() == ["test", "train", "val"]


@pytest.mark.parametrize("column", [[1.0, np.nan, 2, 3], ["a", None, "b", "c"], [1, None, 2, 3], [0.5, None, 2, 3]])
@pytest.mark.parametrize("rule", ["group:g", "time:g"])
def test_gaps_in_what_divides(column, rule):
    for columns in (column, pa.array(column)):
        with pytest.raises(DataError, match=r"1 of 4 items have no 'g' \(first: 0001\)"):
            _ = Splits(blank(4, g=columns), "x", rule).membership


def test_rules_that_cannot_be():
    for rule, says in (("groups:g", "expected random"), ("group:h", "no column 'h'; valid: g"), ("group", "expected"),
                       ("group:g", "2 different 'g' cannot"), ("random:g", "expected")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            _ = Splits(blank(4, g=list("aabb")), "x", rule).membership
    for n in (1, 2):
        with pytest.raises(DataError, match="at least 3 are needed"):
            _ = Splits(blank(n), "x").membership
    assert sorted(Splits(blank(3), "x").membership) == ["test", "train", "val"]


def test_splits_named_by_the_source():
    names = ["training"] * 8 + ["test"] * 2
    splits = data.open(blank(10, split=names, g=list("aabbccddee")), group="g")
    assert splits.rule == "source"
    assert (splits.membership[8:] == "test").all()
    assert (splits.membership == "val").sum() == 2  # a whole group
    groups = splits.all.column("g")
    assert not set(groups[splits.membership == "val"]) & set(groups[splits.membership == "train"])
    assert data.open(blank(10, split=names), split="random").rule == "random"
    for wrong, says in ((["tset"] * 10, "did you mean 'test'"), ([None] * 10, "split 'None'")):
        with pytest.raises(DataError, match=says):
            data.open(blank(10, split=wrong))
    with pytest.raises(DataError, match="none is 'train'"):
        _ = data.open(blank(10, split=["test"] * 10)).train


def test_nothing_is_read_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(DataError):
        data.open("", "images")
    assert os.listdir() == ["a.png"]
