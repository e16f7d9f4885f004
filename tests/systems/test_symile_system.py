"""Symile on the contract: gaps, readers, encoders by address, the baseline, official checkpoints."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import repertory
from repertory import data
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.symile import LabsEncoder, LinearEncoder, Symile, SymileModel, xor_encoders

torch.set_num_threads(1)
SMALL = {"dim": 8, "batch_size": 16, "steps": 4, "normalize": True, "log_scale": 2.0}


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 80, 6)).astype(np.float32)
    c = random.standard_normal((80, 3)).astype(np.float32)
    b[::5] = np.nan
    return {"a": a, "b": b, "c": c, "label": np.arange(80) % 4}


def test_missing_modalities_train_but_are_not_embedded(arrays):
    system = Symile(Symile.Config.build(**SMALL)).fit(arrays)
    assert system.assets["modalities"]["b"]["gaps"]
    np.testing.assert_allclose(
        system.assets["mean.b"],
        np.nanmean([arrays["b"][int(i)] for i in system.splits.train.ids], axis=0),
        rtol=1e-5,
    )
    whole = system.embed(system.splits.all)
    assert len(whole) == 80 * 3 - 16
    assert len(whole.where(modality="b")) == 64
    assert system.evaluate()["retrieval_accuracy"].value >= 0
    with pytest.raises(DataError, match="every modality is missing"):
        data.open({"a": np.full((4, 2), np.nan, np.float32), "b": np.full((4, 2), np.nan, np.float32)}, "manifest")


def test_table_with_images_texts_and_gaps(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for i in range(40):
        Image.fromarray(random.integers(0, 255, (9, 9), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(
            {"picture": f"{i}.png" if i % 4 else None, "caption": f"word{i % 7} word{i % 3}", "patient": i // 2}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    settings = {**SMALL, "image_encoder": "small", "image_size": 8}
    system = repertory.create("symile", **settings)
    system.fit(f"{tmp_path / 'rows.csv'}?group=patient", run=tmp_path / "run")
    groups = [set(getattr(system.splits, part).column("patient")) for part in ("train", "val", "test")]
    assert not groups[0] & groups[2]
    loaded = repertory.load(tmp_path / "run")
    assert loaded.embed(system.splits.all).table.equals(system.embed(system.splits.all).table)
    with pytest.raises(ConfigError, match="lack modality picture"):
        loaded.embed(pd.DataFrame({"caption": ["a", "b"], "title": ["c", "d"]}))


def test_two_modalities_and_every_objective(arrays):
    pair = {name: arrays[name] for name in ("a", "c")}
    for settings in ({"objective": "clip"}, {"negative_sampling": "n_squared"}, {"vector_encoder": "bare"}):
        assert Symile(Symile.Config.build(**SMALL, **settings)).fit(pair).embed().width == 8
    with pytest.raises(ConfigError, match="no modality 'd'"):
        Symile(Symile.Config.build(**SMALL, target="d")).fit(pair)


def test_image_encoder_from_another_run(tmp_path):
    """A pretrained encoder is injected by address, stored whole, and rebuilt without its address."""
    random = np.random.default_rng(0)
    frame = {"image": [], "caption": []}
    for i in range(24):
        Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        frame["image"].append(f"{i}.png")
        frame["caption"].append(f"word{i % 5}")
    pd.DataFrame(frame).to_csv(tmp_path / "rows.csv", index=False)
    settings = {**SMALL, "steps": 1, "encoders": {"image": "timm:test_resnet.r160_in1k?pretrained=false"}}
    system = repertory.create("symile", **settings)
    before = {k: v.clone() for k, v in system._encoder["image"].module.state_dict().items()}
    system.fit(str(tmp_path / "rows.csv"), run=tmp_path / "run")
    after = system.model.encoders["image"].encoder.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "a frozen encoder was trained"
    assert repertory.load(tmp_path / "run").embed().table.equals(system.embed().table)
    with pytest.raises(UserError, match=r"repertory\.load"):
        Symile.load(tmp_path / "run")
    with pytest.raises(ConfigError, match="no image or text of this name"):
        repertory.create("symile", **{**settings, "encoders": {"picture": settings["encoders"]["image"]}}).fit(
            str(tmp_path / "rows.csv")
        )


def test_text_encoder_of_a_language_model(tmp_path):
    """Embeddings and first layer of a transformers model, with a token of its own for missing texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    vocabulary = {"<pad>": 0, "<unk>": 1, **{f"word{i}": i + 2 for i in range(7)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        tmp_path / "lm"
    )
    config = XLMRobertaConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, pad_token_id=0
    )
    model = XLMRobertaModel(config)
    model.save_pretrained(tmp_path / "lm")
    random = np.random.default_rng(0)
    frame = pd.DataFrame({
        "note": [None if i % 6 == 0 else f"word{i % 7} word{i % 3}" for i in range(36)],
        "values": list(random.standard_normal((36, 4)).astype(np.float32)),
    })  # fmt: skip
    frame.to_parquet(tmp_path / "rows.parquet")
    settings = {**SMALL, "text_words": 5, "encoders": {"note": f"hf:{tmp_path / 'lm'}"}}
    source = f"{tmp_path / 'rows.parquet'}?text=note&vector=values"
    system = repertory.create("symile", **settings).fit(source, run=tmp_path / "run")
    encoder = system.model.encoders["note"]
    assert encoder.embeddings.word_embeddings.weight.shape == (10, 16)
    assert not any(name.startswith("encoder.layer.1") for name, _ in encoder.named_parameters())
    (tmp_path / "lm").rename(tmp_path / "gone")
    assert repertory.load(tmp_path / "run").embed(source).table.equals(system.embed(source).table)


def test_reader_of_symile_mimic(tmp_path):
    random = torch.Generator().manual_seed(0)
    for split, rows in (("train", 12), ("val", 4), ("test", 6)):
        torch.save(torch.randn(rows, 3, 32, 32, generator=random), tmp_path / f"cxr_{split}.pt")
        torch.save(torch.randn(rows, 1, 64, 12, generator=random), tmp_path / f"ecg_{split}.pt")
        torch.save(torch.rand(rows, 5, generator=random), tmp_path / f"labs_percentiles_{split}.pt")
        torch.save(torch.ones(rows, 5), tmp_path / f"labs_missingness_{split}.pt")
        torch.save(torch.arange(rows) + 100, tmp_path / f"hadm_id_{split}.pt")
    torch.save(torch.tensor([100, 100, 100, 103, 103, 103]), tmp_path / "label_hadm_id_test.pt")
    settings = {**SMALL, "steps": 1, "batch_size": 4, "vector_encoder": "labs"}
    system = Symile(Symile.Config.build(**settings)).fit(f"manifest:{tmp_path}")
    assert isinstance(system.model.encoders["labs"], LabsEncoder)
    scores, _ = system.retrieval(system.splits.test)
    assert scores.shape == (2, 3)
    encoded = system.represent(system.splits.test)
    torch.testing.assert_close(scores[1, 1], (encoded["ecg"][3] * encoded["labs"][3] * encoded["cxr"][4]).sum())


def test_reader_of_spoken_digits(tmp_path):
    import soundfile

    random = np.random.default_rng(0)
    for digit in range(10):
        for take in range(3):
            soundfile.write(tmp_path / f"{digit}_ann_{take}.wav", random.standard_normal(3000) / 5, 8000)
    splits = data.open(f"manifest:{tmp_path}", "manifest", Symile.readers)
    items = splits.all
    words = np.array(items.modalities["text"].values)[items.modalities["text"].index]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert [names.index(word) for word in words] == list((items.column("digit") + items.column("spoken")) % 10)
    assert set(items.column("speaker")) == {"ann"}
    settings = {**SMALL, "image_encoder": "small", "image_size": 8}
    assert Symile(Symile.Config.build(**settings)).fit(splits).embed().width == 8


def test_official_checkpoints():
    xor = SymileModel(xor_encoders(bits=5, dim=16), normalize=True)
    official = {k.replace("encoders.", "encoders.f_"): v for k, v in xor.state_dict().items()}
    system = Symile.from_official(official)
    inputs = {name: np.random.default_rng(0).integers(0, 2, (6, 5)).astype(np.float32) for name in "abc"}
    vectors = system.embed(inputs)
    expected = xor({name: torch.from_numpy(array) for name, array in inputs.items()})
    np.testing.assert_allclose(vectors.where(modality="b").vectors, expected["b"].detach(), atol=1e-6)

    features = SymileModel({"audio": LinearEncoder(12, 8, missingness=True), "image": LinearEncoder(14, 8)})
    official = {k.replace("encoders.audio", "audio_encoder").replace("encoders.image", "image_encoder"): v
                for k, v in features.state_dict().items()}  # fmt: skip
    assert Symile.from_official(official).config.dim == 8
    with pytest.raises(UserError, match="takes raw images, signals or text"):
        Symile.from_official({"cxr_encoder.resnet.fc.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())})


def test_bound_stays_below_the_total_correlation():
    """log B - loss <= TC at every step, up to sampling error (spec of the bound: in expectation)."""
    from repertory.systems.symile import SymileLoss, total_correlation_bound, xor_information

    torch.manual_seed(0)
    model, loss = SymileModel(xor_encoders(1, 16), -0.3, normalize=True), SymileLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    truth = float(xor_information(1.0).total_correlation)
    for _ in range(40):
        a, b = torch.randint(2, (2, 500, 1)).float()
        value = loss(list(model({"a": a, "b": b, "c": (a != b).float()}).values()), model.logit_scale.exp())
        assert total_correlation_bound(value, 500) <= truth + 0.1
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert total_correlation_bound(value, 500) > 0.8 * truth
