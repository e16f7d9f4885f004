"""What is special to Symile."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from repertory.data.samples import spoken_numbers
from repertory.data.transforms.audio import log_mel
from repertory.errors import ConfigError, DataError
from repertory.systems.symile import baselines, information, model, objective, retrieval
from repertory.systems.symile.objective import SymileLoss


def representations(modalities=3, batch=5, dim=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype).requires_grad_() for _ in range(modalities)]


def straightforward(reps, scale):
    target = torch.arange(len(reps[0]))
    logits = [objective.logits_n_squared(r, reps[:a] + reps[a + 1 :]) for a, r in enumerate(reps)]
    return torch.stack([F.cross_entropy(scale * x, target) for x in logits]).mean()


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("chunk", [1, 60, 2**20])
def test_streamed_equals_straightforward(modalities, chunk, monkeypatch):
    monkeypatch.setattr(objective, "CHUNK", chunk)
    reps, log_scale = representations(modalities), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    expected = straightforward(reps, log_scale.exp())
    actual = SymileLoss("n_squared")(reps, log_scale.exp())
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual, [*reps, log_scale]), torch.autograd.grad(expected, [*reps, log_scale]), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_streamed_survives_large_logits():
    reps = [r.detach().requires_grad_() for r in (30 * r for r in representations(dtype=torch.float32))]
    loss = SymileLoss("n_squared")(reps, 10.0)
    expected = straightforward([r.double() for r in reps], 10.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-2)
    loss.backward()
    assert all(r.grad.isfinite().all() for r in reps)


@pytest.mark.parametrize("negative_sampling", ["n", "n_squared"])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_gradients(negative_sampling, modalities):
    reps = representations(modalities, batch=3)
    draws = objective.draw_permutations(modalities, 3) if negative_sampling == "n" else None
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    loss = SymileLoss(negative_sampling)
    assert torch.autograd.gradcheck(lambda scale, *reps: loss(reps, scale, draws), (scale, *reps))


@pytest.mark.parametrize("negative_sampling", ["n", "n_squared"])
def test_bf16_autocast(negative_sampling):
    reps = representations(batch=8, dtype=torch.float32)
    draws = objective.draw_permutations(3, 8) if negative_sampling == "n" else None
    expected = SymileLoss(negative_sampling)(reps, 1.0, draws)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SymileLoss(negative_sampling)(reps, 1.0, draws)
    torch.testing.assert_close(loss, expected)
    half = SymileLoss(negative_sampling)([r.bfloat16() for r in reps], 1.0, draws)
    assert half.dtype == torch.float32
    half.backward()
    assert all(r.grad.isfinite().all() for r in reps)


def test_row_order_does_not_matter():
    reps, order = representations(), torch.tensor([3, 0, 4, 1, 2])
    loss = SymileLoss("n_squared")
    torch.testing.assert_close(loss([r[order] for r in reps], 2.0), loss(reps, 2.0))
    draws = objective.draw_permutations(3, 5)
    inverse = order.argsort()
    torch.testing.assert_close(
        SymileLoss()([r[order] for r in reps], 2.0, inverse[draws[..., order]]), SymileLoss()(reps, 2.0, draws)
    )


def test_two_modalities_without_shuffling_are_symmetric_infonce():
    reps, identity = representations(2), torch.arange(5).expand(2, 1, 5)
    infonce = baselines.infonce(*reps, 2.0)
    torch.testing.assert_close(SymileLoss()(reps, 2.0, identity), infonce)
    torch.testing.assert_close(SymileLoss("n_squared")(reps, 2.0), infonce)
    torch.testing.assert_close(baselines.PairwiseCLIPLoss()(reps, 2.0), infonce)


def test_permutations_are_drawn_afresh():
    draws = objective.draw_permutations(4, 50)
    assert draws.shape == (4, 3, 50)
    assert (draws.sort(-1).values == torch.arange(50)).all()
    assert len(draws.flatten(0, 1).unique(dim=0)) == 12


@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather is deprecated")
@pytest.mark.parametrize("negative_sampling", ["n", "n_squared"])
def test_gathered_negatives_equal_the_joint_batch(negative_sampling, monkeypatch):
    whole = representations(batch=6)
    draws = objective.draw_permutations(3, 6) if negative_sampling == "n" else None
    expected = SymileLoss(negative_sampling)(whole, 1.5, draws)
    loss = SymileLoss(negative_sampling, gather=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(loss(whole, 1.5, draws), expected)
        # As the second of two processes sees it.
        first, second = [r[:3] for r in whole], [r[3:] for r in whole]
        monkeypatch.setattr(
            torch.distributed.nn.functional, "all_gather", lambda r: (first[[r is s for s in second].index(True)], r)
        )
        joint = loss(second, 1.5, draws)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(joint, expected)
    for a, b in zip(torch.autograd.grad(joint, whole), torch.autograd.grad(expected, whole), strict=True):
        torch.testing.assert_close(a, b)


def _nan_row(reps):
    return [F.normalize(r.detach(), dim=1, eps=0).index_fill(0, torch.tensor([2]), float("nan")) for r in reps]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:1], "at least 2 modalities, got 1"),
        (lambda r: [r[0], r[1][:4], r[2]], r"\(5, 4\), \(4, 4\), \(5, 4\)"),
        (lambda r: [r[0], r[1][:, :3], r[2]], r"\(5, 4\), \(5, 3\), \(5, 4\)"),
        (lambda r: [x[0] for x in r], r"one shape \[batch, dim\]"),
        (lambda r: [x[:1] for x in r], "batch of 1 holds no negatives"),
        (lambda r: [r[0], r[1].long(), r[2]], "representation 1 has dtype torch.int64"),
        (lambda r: [r[0], r[1], *_nan_row(r[2:])], "representation 2, row 2 holds NaN"),
    ],
)
@pytest.mark.parametrize("loss", [SymileLoss(), SymileLoss("n_squared"), baselines.PairwiseCLIPLoss()])
def test_bad_representations(loss, change, message):
    with pytest.raises(DataError, match=message):
        loss(change(representations()), 1.0)


def test_bad_options():
    with pytest.raises(ConfigError, match="unknown negative_sampling 'n_square'; did you mean 'n_squared'"):
        SymileLoss("n_square")
    with pytest.raises(ConfigError, match=r"must be positive, got -0.3; pass exp\(s\), not s"):
        SymileLoss()(representations(), torch.tensor(-0.3))
    with pytest.raises(ConfigError, match="one number"):
        SymileLoss()(representations(), torch.ones(5))
    with pytest.raises(DataError, match="overflow"):
        SymileLoss()([r.float() * 1e20 for r in representations()], 1.0)
    with pytest.raises(ConfigError, match=r"needs about .* GiB"):
        SymileLoss("n_squared")(representations(modalities=8, batch=64), 1.0)
    with pytest.raises(ConfigError, match=r"needs about .* GiB"):
        objective.logits_n_squared(torch.ones(2000, 4), [torch.ones(2000, 4)] * 2)
    with pytest.raises(DataError, match=r"permutations must be .* \(3, 2, 5\)"):
        SymileLoss()(representations(), 1.0, torch.zeros(2, 2, 5, dtype=torch.long))
    with pytest.raises(ConfigError, match="belong to negative_sampling 'n'"):
        SymileLoss("n_squared")(representations(), 1.0, objective.draw_permutations(3, 5))


@pytest.mark.parametrize("similarity", [objective.mip_similarity, baselines.pairwise_similarity])
def test_similarity(similarity):
    q, r, candidates = representations()
    full = similarity([q, r], candidates)
    assert full.shape == (5, 5)
    torch.testing.assert_close(similarity([q[0], r], candidates), similarity([q[:1].expand(5, -1), r], candidates))
    torch.testing.assert_close(similarity([q[0], r[0]], candidates), full[:1])
    for queries, bank, message in (
        ([q[:, :3]], candidates, "candidates of width 4"),
        ([q, r[:3]], candidates, "numbers of queries differ"),
        ([q.long()], candidates, "floating-point"),
        ([q], candidates[0], r"\[candidates, dim\]"),
        ([], candidates, "at least one query"),
    ):
        with pytest.raises(DataError, match=message):
            similarity(queries, bank)


def test_retrieval():
    q, r, candidates = representations()
    full = retrieval.retrieval_scores([q, r], candidates)
    torch.testing.assert_close(retrieval.retrieval_scores([q, r[0]], candidates, chunk=2), (q * r[0]) @ candidates.T)
    listed = torch.tensor([[4, 0], [1, 2], [3, 3], [0, 1], [2, 4]])
    torch.testing.assert_close(retrieval.retrieval_scores([q, r], candidates, listed, chunk=2), full.gather(1, listed))
    assert retrieval.retrieve(full).equal(full.argmax(1))
    with pytest.raises(DataError, match=r"outside 0\.\.4"):
        retrieval.retrieval_scores([q, r], candidates, listed + 1)
    with pytest.raises(DataError, match="NaN"):
        retrieval.retrieve(full * float("nan"))
    with pytest.warns(UserWarning, match="600 of 600 queries have tied"):
        drawn = retrieval.retrieve(torch.tensor([[1.0, 1.0, 0.0]]).expand(600, 3), torch.Generator().manual_seed(0))
    assert drawn.bincount(minlength=3)[2] == 0
    assert 0.4 < drawn.double().mean() < 0.6


def test_bootstrap():
    correct = torch.arange(1000) % 4 == 0
    accuracy = retrieval.bootstrap_accuracy(correct, 200, torch.Generator().manual_seed(0))
    assert accuracy.mean == pytest.approx(0.25, abs=0.005)
    assert accuracy.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 1000), rel=0.2)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_information_agrees_with_the_joint_distribution(p):
    bits = 2
    a, b = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    joint = p * F.one_hot(a ^ b, 4) / 16 + (1 - p) * F.one_hot(a, 4) / 16
    terms = information.xor_information(p, bits)
    torch.testing.assert_close(information.total_correlation(joint), terms.total_correlation)
    torch.testing.assert_close(information.total_correlation(joint.sum(1)), terms.ac)
    torch.testing.assert_close(information.total_correlation(joint.sum(0)), terms.bc)
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        information.xor_information(1.5)
    with pytest.raises(DataError, match="sums to 1"):
        information.total_correlation(2 * joint)


def xor_batch(batch, generator):
    a, b = torch.randint(2, (2, batch, 1), generator=generator).float()
    return {"a": a, "b": b, "c": (a != b).float()}


def test_learns_xor_and_never_claims_too_much_information():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    symile = model.SymileModel(model.xor_encoders(1, 16), normalize=True)
    optimiser = torch.optim.AdamW(symile.parameters(), lr=0.1)
    truth = information.xor_information(1.0, 1).total_correlation
    for _ in range(150):
        reps = symile(xor_batch(500, generator))
        loss = SymileLoss()(list(reps.values()), symile.logit_scale.exp())
        assert information.total_correlation_bound(loss.detach(), 500) < truth + 0.1
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test = xor_batch(1000, generator)
    reps = symile(test)
    candidates = F.normalize(symile.encoders["b"](torch.tensor([[0.0], [1.0]])), dim=1)
    found = retrieval.retrieve(objective.mip_similarity([reps["a"], reps["c"]], candidates))
    assert (found == test["b"][:, 0]).float().mean() > 0.99


def official_names(name):
    modality, _, rest = name.removeprefix("encoders.").partition(".")
    if name == "logit_scale":
        return name
    return f"encoders.f_{modality}.{rest}" if modality in ("a", "b", "c") else f"{modality}_encoder.{rest}"


def text_config():
    from transformers import XLMRobertaConfig

    return XLMRobertaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )


FAMILIES = {
    "m3": lambda: {
        "audio": model.LinearEncoder(6, 8, missingness=True),
        "image": model.LinearEncoder(5, 8),
        "text": model.TextEncoder(text_config(), 8),
    },
    "mimic": lambda: {"cxr": model.CXREncoder(8), "ecg": model.ECGEncoder(8), "labs": model.LabsEncoder(8)},
    "xor": lambda: model.xor_encoders(2, 8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_official_checkpoint_loads_strictly(family):
    torch.manual_seed(0)
    source, target = (model.SymileModel(FAMILIES[family]()) for _ in range(2))
    state = {official_names(name): tensor for name, tensor in source.state_dict().items()}
    if family == "m3":  # the whole text model is stored; what is used of it is stored again as aliases
        from transformers import AutoModel

        whole = AutoModel.from_config(text_config())
        state |= {f"text_encoder.encoder.{name}": tensor for name, tensor in whole.state_dict().items()}
        state |= {f"text_encoder.embeddings.{name}": t for name, t in whole.embeddings.state_dict().items()}
        state |= {f"text_encoder.encoder_layer.{name}": t for name, t in whole.encoder.layer[0].state_dict().items()}
        target.load_state_dict(model.from_official_keys(state))
        ids = torch.tensor([[0, 7, 8, 2, 1, 1], [0, 9, 8, 7, 6, 2]])
        mask = (ids != 1).long()
        shallow = whole.eval()
        shallow.encoder.layer = nn.ModuleList(shallow.encoder.layer[:1])
        encoder = target.eval().encoders["text"]
        tokens = shallow(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(encoder(ids, mask), encoder.layer_norm(encoder.fc(tokens).mean(1)))
    else:
        target.load_state_dict(model.from_official_keys(state))
        assert all(a.equal(b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))


def test_encoders_of_other_inputs():
    torch.manual_seed(0)
    assert model.ImageEncoder(8)(torch.rand(2, 1, 11, 8)).shape == (2, 8)
    assert model.SpeechEncoder(32, 8)(torch.rand(2, 32, 42)).shape == (2, 8)
    assert model.ECGEncoder(8)(torch.rand(2, 1, 200, 12)).shape == (2, 8)
    assert model.CXREncoder(8)(torch.rand(2, 3, 64, 64)).shape == (2, 8)
    words = model.WordsEncoder(10, 5, 8)
    text = torch.tensor([[1, 2, 3], [2, 1, 3]])
    assert not torch.allclose(*words(text))
    torch.testing.assert_close(words(F.pad(text, (0, 2))), words(text))
    with pytest.raises(DataError, match="6 words"):
        words(torch.ones(1, 6, dtype=torch.long))
    with pytest.raises(DataError, match="needs 'missing'"):
        model.LinearEncoder(4, 8, missingness=True)(torch.rand(2, 4))
    with pytest.raises(DataError, match="no encoder for modality touch"):
        model.SymileModel(model.xor_encoders(1, 4))({"touch": torch.rand(2, 1)})


@pytest.fixture(scope="module")
def engine():
    spoken_numbers.ENGINE.get()
    return spoken_numbers.ENGINE.folder / "espeakng_loader"


@pytest.fixture(scope="module")
def sample(engine):
    return spoken_numbers.build(engine, triples=20_000, seed=1)


def test_sample_is_a_function_of_its_seed(engine, sample, capfd):
    small = partial(spoken_numbers.build, engine, triples=500)
    first, again, other = small(seed=3), small(seed=3), small(seed=4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["utterances"], other["utterances"])
    assert not np.array_equal(first["text_digits"], other["text_digits"])
    assert capfd.readouterr() == ("", "")


def test_sample_splits_share_no_item(sample):
    for bank in ("image", "text", "utterance"):
        used = [set(sample[bank][sample["split"] == split]) for split in spoken_numbers.SPLITS]
        assert all(used)
        assert sum(map(len, used)) == len(set.union(*used))
    assert len(set(sample["texts"])) == len(sample["texts"])


def test_only_text_and_speech_together_tell_the_digit(sample):
    digit, language, text = sample["digit"], sample["language"], sample["text_digits"]
    assert (sample["image_digits"][sample["image"]] == digit).all()
    assert (sample["utterance_languages"][sample["utterance"]] == language).all()
    assert (text[np.arange(len(text)), language] == digit).all()
    for words, row in zip(sample["texts"][:20], text, strict=False):
        named = [spoken_numbers.NUMBERS[name][d] for name, d in zip(spoken_numbers.LANGUAGES, row, strict=True)]
        assert words.split() == named
    joint = np.zeros((10, 5))
    np.add.at(joint, (digit, language), 1 / len(digit))
    assert information.total_correlation(torch.from_numpy(joint)) < 0.005  # speech alone: nothing
    most_frequent = np.stack([(text == d).sum(1) for d in range(10)], axis=1).max(axis=1) / 5
    assert 0.25 < most_frequent.mean() < 0.4  # text alone, at best


def test_speech(engine, sample):
    assert sample["utterances"].dtype == np.int16
    assert (np.abs(sample["utterances"].astype(int)).max(axis=1) > 5000).all()
    spectrograms = log_mel(sample["utterances"][:20] / np.float32(2**15), 22050)
    assert spectrograms.shape == (20, 32, 42)
    assert np.isfinite(spectrograms).all()
    tone = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050) * 20000
    loudest = log_mel((tone / 2**15).astype(np.float32)[None], 22050)[0].mean(axis=1).argmax()
    assert loudest in (5, 6)  # 440 Hz is 550 mel, of 77 to 2840
    slow, fast = spoken_numbers.speak(
        [spoken_numbers.Phrase("die Zahl", "de", rate, 50) for rate in (120, 220)], engine
    )
    assert slow.dtype == np.int16
    assert len(slow) > 1.5 * len(fast)
    with pytest.raises(DataError, match="cannot say 'x' with voice 'nope'"):
        spoken_numbers.speak([spoken_numbers.Phrase("x", "nope", 150, 50)], engine)
    with pytest.raises(DataError, match="no eSpeak NG in"):
        spoken_numbers.speak([], engine / "absent")
    with pytest.raises(DataError, match="between 100 and 100,000"):
        spoken_numbers.build(engine, triples=10)
