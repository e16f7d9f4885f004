"""Slicing, vocabulary, NCE, engines, analyses and replacement of music_word2vec, and the note readers it uses."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from repertory import catalog, data
from repertory.data.music import Music
from repertory.data.notes import Piece, read_corpus, read_midi, read_notes, write_midi
from repertory.errors import ConfigError, DataError, MissingExtraError, UserError
from repertory.systems.music_word2vec import analysis, replacement
from repertory.systems.music_word2vec.data import sequences as sequences_of
from repertory.systems.music_word2vec.data import training_sequences
from repertory.systems.music_word2vec.engines import NceEngine, gensim_vectors
from repertory.systems.music_word2vec.model import SliceEmbedding, load_word2vec, save_word2vec
from repertory.systems.music_word2vec.objective import (
    SkipGramGroups,
    expected_count,
    nce_loss,
    nce_sgd_steps,
    pairs_from_draws,
    sample_negatives,
)
from repertory.systems.music_word2vec.slicing import (
    pitch_class_codes,
    presence,
    read_slices,
    rotate,
    slice_pieces,
    words,
    write_slices,
)
from repertory.systems.music_word2vec.system import MusicWord2Vec
from repertory.systems.music_word2vec.vocabulary import Vocabulary

NOTES = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 24), st.integers(12, 115)), min_size=1, max_size=40).map(
    lambda rows: np.array(rows, dtype=float) / [8, 8, 1]
)


@pytest.fixture(scope="module")
def chorales(tmp_path_factory):
    return read_corpus("bach/bwv*.mxl", cache=tmp_path_factory.mktemp("corpus"), count=4)


@pytest.fixture(scope="module")
def sequences(chorales):
    return [rotate(codes, k) for codes in slice_pieces(chorales, end="exclusive") for k in range(12)]


# slicing


def naive_presence(notes, beat, width, end):
    onsets, durations = np.round(notes[:, 0], 3), np.round(notes[:, 1], 3)
    present = np.zeros((int((onsets + durations).max() // beat) + 1, width), dtype=bool)
    for onset, duration, pitch in zip(onsets, durations, notes[:, 2].astype(int), strict=True):
        for place in range(len(present)):
            reached = onset + duration >= place * beat if end == "inclusive" else onset + duration > place * beat
            if onset < (place + 1) * beat and reached:
                key = pitch % 12 if width == 12 else pitch - 21
                if 0 <= key < width:
                    present[place, key] = True
    return present


@given(NOTES, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["inclusive", "exclusive"]))
@settings(max_examples=60, deadline=None)
def test_slicing_is_the_loop_over_notes(notes, beat, end):
    np.testing.assert_array_equal(presence(notes, beat, end=end), naive_presence(notes, beat, 12, end))
    if ((notes[:, 2] >= 21) & (notes[:, 2] <= 108)).any():
        np.testing.assert_array_equal(
            presence(notes, beat, keys="piano", end=end), naive_presence(notes, beat, 88, end)
        )


@given(NOTES, st.integers(-12, 12))
@settings(max_examples=40, deadline=None)
def test_transposition_rotates_codes(notes, semitones):
    piece = Piece("piece", notes)
    np.testing.assert_array_equal(words(piece.transposed(semitones).notes), rotate(words(piece.notes), semitones))


def test_codes_and_ends():
    chord = np.array([[0, 1, 60], [0, 1, 64], [0, 1, 67], [1, 1, 65]], dtype=float)
    assert words(chord).tolist() == [145, 145 + 32, 32]
    assert words(chord, end="exclusive").tolist() == [145, 32, 0]
    assert words(chord, keys="piano", end="exclusive")[0] == "0-0-0-0-145-0-0-0-0"
    assert words(np.array([[0.0005, 0.9995, 60]])).tolist() == [1, 1]  # half away from zero, to 1.001


def test_slice_files(tmp_path, sequences):
    ids = [f"piece {n}" for n in range(len(sequences))]
    for _ in range(2):  # written anew, never appended
        write_slices(tmp_path, ids, sequences)
    read_ids, read = read_slices(tmp_path / "music_slice.txt")
    assert read_ids == ids
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, sequences, strict=True))
    counts = dict(line.split() for line in (tmp_path / "vocab_slice_occurrence.txt").read_text().splitlines())
    assert sum(map(int, counts.values())) == sum(map(len, sequences))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("145 137\n145 x\n", "line 2: 'x'"),
        ("145\n4096\n", "line 2: '4096'"),
        ("-1\n", "line 1: '-1'"),
        ("1.5\n", "line 1: '1.5'"),
        ("145\n\n145\n", "line 2: is empty"),
        ("0-0-0-0-145-0-0-0-0\n0-0-0-0-145-0-0-0-2\n", "line 2"),
        ("", "is empty"),
    ],
)
def test_bad_slice_files(tmp_path, text, message):
    (tmp_path / "music_slice.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_slices(tmp_path / "music_slice.txt")


def test_file_list_of_another_length(tmp_path):
    (tmp_path / "music_slice.txt").write_text("145\n")
    (tmp_path / "music_slice_file_list.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="names 2 pieces"):
        read_slices(tmp_path / "music_slice.txt")


@pytest.mark.parametrize("beat", [0, -1, float("nan")])
def test_beat_must_be_positive(beat):
    with pytest.raises(ConfigError, match="beat"):
        words(np.array([[0.0, 1.0, 60.0]]), beat)


def test_piece_off_the_piano_is_named():
    with pytest.raises(DataError, match=r"low.*on the piano"):
        slice_pieces([Piece("low", np.array([[0.0, 1.0, 10.0]]))], keys="piano")


# notes


def test_too_many_notes_of_one_pitch(tmp_path):
    with pytest.raises(DataError, match="more than 15 notes of pitch 60"):
        write_midi(np.tile([0.0, 1.0, 60.0], (16, 1)), tmp_path / "piece.mid")


@given(NOTES)
@settings(max_examples=30, deadline=None)
def test_midi_written_then_read(tmp_path_factory, notes):
    path = tmp_path_factory.mktemp("midi") / "piece.mid"
    write_midi(notes, path)
    written, read = (sorted(map(tuple, rows.round(6))) for rows in (notes, read_midi(path).notes))
    assert written == read


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.empty((0, 3)), "no notes"),
        ([[0, 1]], "shape"),
        ([[0, 1, 60], [1, 0, 60]], "note 1 .*not positive"),
        ([[0, -1, 60]], "not positive"),
        ([[-1, 1, 60]], "before beat 0"),
        ([[0, 1, 128]], "0..127"),
        ([[0, 1, -1]], "0..127"),
        ([[0, 1, 60.5]], "0..127"),
        ([[0, np.nan, 60]], "not finite"),
    ],
)
def test_bad_notes(rows, message):
    with pytest.raises(DataError, match=f"song.mid: .*{message}"):
        Piece("song", np.array(rows), "song.mid")


def midi_bytes(division: bytes, track: bytes) -> bytes:
    return b"MThd\0\0\0\6\0\0\0\1" + division + b"MTrk" + len(track).to_bytes(4, "big") + track


NOTE_ON, END_OF_TRACK = b"\0\x90\x3c\x40", b"\0\xff\x2f\0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (midi_bytes(b"\x01\xe0", END_OF_TRACK), "no notes"),
        (midi_bytes(b"\xe7\x28", NOTE_ON + b"\x60\x80\x3c\0" + END_OF_TRACK), "SMPTE"),
        (midi_bytes(b"\x01\xe0", NOTE_ON + b"\0\x80\x3c\0" + END_OF_TRACK), "not positive"),
        (b"not a midi file", "not a readable MIDI"),
        (b"", "not a readable MIDI"),
        (midi_bytes(b"\x01\xe0", NOTE_ON)[:-2], "not a readable MIDI"),
    ],
)
def test_bad_midi(tmp_path, content, message):
    path = tmp_path / "bad.mid"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad.mid.*{message}"):
        read_midi(path)


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(MissingExtraError, match=r"mido.*repertory\[music\]"):
        read_midi(tmp_path / "x.mid")


def test_velocity_zero_and_open_notes(tmp_path):
    path = tmp_path / "open.mid"
    track = NOTE_ON + b"\x60\x90\x3c\0" + b"\0\x90\x40\x40" + b"\x30\xff\x2f\0"
    path.write_bytes(midi_bytes(b"\x00\x60", track))
    assert read_midi(path).notes.tolist() == [[0, 1, 60], [1, 0.5, 64]]


def test_scores_tables_and_folders(tmp_path):
    abc = "X:1\nT:a\nM:4/4\nL:1/4\nK:C\nC D- D E|\n"
    (tmp_path / "tune.abc").write_text(abc)
    (tmp_path / "sub").mkdir()
    write_midi(np.array([[0.0, 1.0, 60.0]]), tmp_path / "sub" / "one.mid")
    pieces = {piece.id: piece.notes for piece in read_notes(tmp_path)}
    assert pieces["sub/one"].tolist() == [[0, 1, 60]]
    assert pieces["tune"].tolist() == [[0, 1, 60], [1, 2, 62], [3, 1, 64]]  # the tie is joined
    (tmp_path / "notes.csv").write_text("piece,onset,duration,pitch\na,0,1,60\nb,0,2,61\n")
    assert [piece.id for piece in read_notes(tmp_path / "notes.csv")] == ["a", "b"]
    (tmp_path / "bad.csv").write_text("onset,pitch\n0,60\n")
    (tmp_path / "bad.mxl").write_text("nothing")
    (tmp_path / "x.wav").write_text("nothing")
    for name, message in (
        ("bad.csv", "no column 'duration'"),
        ("bad.mxl", "cannot read"),
        ("x.wav", "suffix"),
        ("none", "no such"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            read_notes(tmp_path / name)


def test_corpus_is_cached(chorales, tmp_path, monkeypatch):
    assert len({piece.id for piece in chorales}) == 4
    read_corpus("bach/bwv1.6.mxl", cache=tmp_path)
    monkeypatch.setattr("repertory.data.notes.read_score", lambda path: pytest.fail("parsed again"))
    (again,) = read_corpus("bach/bwv1.6.mxl", cache=tmp_path)
    np.testing.assert_array_equal(again.notes, chorales[0].notes)
    with pytest.raises(DataError, match="no piece"):
        read_corpus("bach/none*", cache=tmp_path)


# vocabulary


def test_vocabulary(tmp_path):
    stream = np.array([5, 7, 7, 9, 5, 3, 1])
    vocabulary = Vocabulary.build(stream, 4)
    assert vocabulary.known.tolist() == [5, 7, 9]
    assert vocabulary.id_counts.tolist() == [2, 2, 2, 1]
    assert vocabulary.encode(stream).tolist() == [1, 2, 2, 3, 1, 0, 0]
    with pytest.raises(DataError, match=r"slice 3 .* 1 times .* V = 4"):
        vocabulary.id(3)
    with pytest.raises(DataError, match=r"slice 8 .* 0 times"):
        vocabulary.id(8)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.words.tolist() == vocabulary.words.tolist()
    assert loaded.size == 4
    assert loaded.counts.tolist() == vocabulary.counts.tolist()
    with pytest.raises(ConfigError, match="vocabulary is 1"):
        Vocabulary.build(stream, 1)
    with pytest.raises(DataError, match="no slices"):
        Vocabulary.build(stream[:0])
    with pytest.warns(UserWarning, match="using 6"):
        assert Vocabulary.build(stream, 2000).size == 6


def test_vocabulary_of_piano_words():
    stream = words(np.array([[0, 1, 60], [1, 1, 64]], dtype=float), keys="piano")
    vocabulary = Vocabulary.build(stream, 4)
    assert vocabulary.encode(stream).tolist() == [1, 2, 3]
    assert vocabulary.id(str(stream[0])) == 1


# pairs, negatives, NCE


def pair_set(centres, contexts):
    return sorted(zip(np.ravel(centres).tolist(), np.ravel(contexts).tolist(), strict=True))


@pytest.mark.parametrize(("window", "batch"), [(2, 16), (4, 128), (1, 2)])
def test_groups_hold_the_official_pairs(window, batch):
    rng = np.random.default_rng(0)
    ids, calls = rng.integers(0, 30, 101), 20
    draws = rng.integers(0, 2 * window + 1, 60 * batch * calls)
    official = pairs_from_draws(ids, draws, skip_window=window, num_skips=2 * window, batch_size=batch, calls=calls)
    groups = SkipGramGroups(ids, skip_window=window, batch_size=batch)
    centres, contexts, pairs = groups.take(np.arange(calls), rng)
    for call in range(calls):
        row, column = np.nonzero(pairs[call].numpy())
        assert pair_set(official[0][call], official[1][call]) == pair_set(centres[call][row], contexts[call][column])


def test_fewer_skips_and_piece_borders():
    ids, pieces = np.arange(40), np.repeat([0, 1], 20)
    groups = SkipGramGroups(ids, skip_window=3, num_skips=2, batch_size=10)
    _, _, pairs = groups.take(np.arange(len(groups)), np.random.default_rng(0))
    assert (pairs.sum(2) == 2).all()
    groups = SkipGramGroups(ids, skip_window=3, batch_size=60, pieces=pieces)
    centres, contexts, pairs = groups.take(np.arange(len(groups)), np.random.default_rng(0))
    group, row, column = pairs.nonzero(as_tuple=True)
    assert ((centres[group, row] < 20) == (contexts[group, column] < 20)).all()


def test_group_without_pairs_changes_nothing():
    groups, rng = SkipGramGroups(np.arange(32), batch_size=128, pieces=np.arange(32)), np.random.default_rng(0)
    model = SliceEmbedding(40, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = (*groups.take(np.arange(2), rng), *sample_negatives(2, 5, 40, rng))
    loss = nce_sgd_steps(model.embeddings, model.nce_weights, model.nce_biases, *batch)
    assert (loss == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sampler_distribution():
    negatives, num_tries = sample_negatives(20_000, 3, 12, np.random.default_rng(0))
    assert negatives.shape == (20_000, 3)
    assert all(len(set(row)) == 3 for row in negatives[:200].tolist())
    share = torch.bincount(negatives.flatten(), minlength=12) / 20_000
    expected = expected_count(torch.arange(12), 12, num_tries[:, None]).mean(0)
    torch.testing.assert_close(share.double(), expected, atol=0.02, rtol=0)
    first = torch.bincount(negatives[:, 0], minlength=12) / 20_000
    torch.testing.assert_close(
        first.double(), expected_count(torch.arange(12), 12, torch.tensor(1)), atol=0.012, rtol=0
    )
    assert num_tries.min() == 3


@pytest.mark.parametrize("seed", range(3))
def test_written_out_steps_equal_autograd(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = SliceEmbedding(40, 12).double()
    groups = SkipGramGroups(rng.integers(0, 40, 200), skip_window=3, batch_size=48)
    batch = (*groups.take(np.array([0, 7, 24]), rng), *sample_negatives(3, 9, 40, rng))
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = []
    for centres, contexts, pairs, negatives, num_tries in zip(*batch, strict=True):
        row, column = pairs.nonzero(as_tuple=True)
        parameters = (reference.embeddings, reference.nce_weights, reference.nce_biases)
        loss = nce_loss(*parameters, centres[row], contexts[column], negatives, num_tries).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.detach())
    losses = nce_sgd_steps(model.embeddings, model.nce_weights, model.nce_biases, *batch, learning_rate=0.1)
    torch.testing.assert_close(losses, torch.stack(expected))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bad_sizes():
    with pytest.raises(ConfigError, match="20 negatives"):
        sample_negatives(1, 20, 20, np.random.default_rng(0))
    with pytest.raises(DataError, match="one window 9"):
        SkipGramGroups(np.arange(8))
    with pytest.raises(ConfigError, match="num_skips"):
        SkipGramGroups(np.arange(100), num_skips=9)
    with pytest.raises(ConfigError, match="num_skips"):
        SkipGramGroups(np.arange(100), num_skips=7)
    with pytest.raises(DataError, match="one window 9"):
        gensim_vectors([np.arange(4)], 5)


# engines


def trained(sequences, steps, start=0, state=None, seed=3, learning_rate=0.5):
    vocabulary = Vocabulary.build(np.concatenate(sequences), 80)
    torch.manual_seed(seed)
    model = SliceEmbedding(vocabulary.size, 16)
    if state:
        model.load_state_dict(state)
    pairs = SkipGramGroups(vocabulary.encode(np.concatenate(sequences)))
    engine = NceEngine(model, pairs, negatives=20, groups=4, learning_rate=learning_rate, seed=seed)
    return [engine.step(k) for k in range(start, steps)], {k: v.clone() for k, v in model.state_dict().items()}


def test_nce_engine_learns_and_resumes(sequences):
    losses, whole = trained(sequences, 120)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    _, half = trained(sequences, 50)
    _, resumed = trained(sequences, 120, start=50, state=half)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_divergence_is_an_error(sequences):
    with pytest.raises(ConfigError, match="lower the learning rate"):
        trained(sequences, 50, learning_rate=1e30)


GENSIM = """
import numpy as np
from repertory.systems.music_word2vec.data import sequences as sequences_of
from repertory.systems.music_word2vec.data import training_sequences
from repertory.systems.music_word2vec.engines import gensim_vectors
rng = np.random.default_rng(0)
ids = [rng.integers(0, 50, 60) for _ in range(20)]
total = gensim_vectors(ids, 60, dim=8, negatives=5, epochs=1, seed=4).double().sum().item()
"""


def test_gensim_depends_on_the_seed_alone(sequences):
    vocabulary = Vocabulary.build(np.concatenate(sequences), 100)
    ids = [vocabulary.encode(sequence) for sequence in sequences]
    first, again, other = (gensim_vectors(ids, 100, dim=8, negatives=5, epochs=1, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    here: dict[str, float] = {}
    exec(GENSIM, here)
    command = [sys.executable, "-c", GENSIM + "print(total)"]
    there = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert float(there.stdout) == here["total"]


def test_model(tmp_path):
    torch.manual_seed(0)
    model = SliceEmbedding(500, 64)
    assert model.embeddings.abs().max() <= 1
    assert model.nce_weights.abs().max() <= 2 / 8
    assert (model.nce_biases == 0).all()
    torch.testing.assert_close(model(torch.tensor([3, 4])).norm(dim=1), torch.ones(2))
    official = {f"{name}:0": torch.rand_like(value) for name, value in model.state_dict().items()}
    model.load_official(official)
    assert torch.equal(model.nce_weights, official["nce_weights:0"])
    with pytest.raises(RuntimeError):
        model.load_official({"embeddings": official["embeddings:0"]})
    vocabulary = Vocabulary.build(np.arange(499), 500)
    save_word2vec(tmp_path / "vectors.txt", vocabulary, model.embeddings)
    names, vectors = load_word2vec(tmp_path / "vectors.txt")
    assert names == ["UNK", *map(str, range(499))]
    torch.testing.assert_close(vectors, model.embeddings.detach())


# analyses and replacement


def test_chords():
    triads = {"C-major triad": 145, "F-major triad": 545, "G-major triad": 2180, "A-minor triad": 529, "Cm": 137}
    flats = {"Eb-major triad": 1160, "E--major triad": 1160, "Ebmaj7": 1160 | 4, "Bb7": 1024 | 4 | 32 | 256}
    names = triads | flats | {"G-dominant seventh chord": 2180 | 32, "B-diminished triad": 2048 | 4 | 32}
    assert {name: analysis.chord_code(name) for name in names} == names
    with pytest.raises(DataError, match="chord 'H-major triad'"):
        analysis.chord_code("H-major triad")
    assert analysis.chord_roots([145, 529, 1160]).tolist() == [0, 9, 3]
    assert analysis.role_codes([145, 545])[:, :3].tolist() == [[2180, 545, 529], [145, 1060, 548]]
    assert analysis.FIFTHS[[0, 7, 5, 2, 9, 6]].tolist() == [0, 1, 1, 2, 3, 6]
    with pytest.raises(DataError, match="silence"):
        analysis.chord_roots([0])


def test_keys_on_a_perfect_circle(chorales):
    """An embedding that is the mean of its pitch classes' places on the circle of fifths orders keys by fifths."""
    codes = np.arange(1, 4096)
    angle = 2 * np.pi * (np.arange(12) * 7 % 12) / 12
    present = (codes[:, None] >> np.arange(12)) & 1
    vectors = present @ np.stack([np.cos(angle), np.sin(angle)], axis=1) / present.sum(1, keepdims=True)
    embeddings, vocabulary = np.concatenate([np.zeros((1, 2)), vectors]), Vocabulary.build(codes, 4096)
    keys = np.stack([analysis.key_vectors(piece, embeddings, vocabulary) for piece in chorales])
    similarity = analysis.key_similarity(keys)
    assert analysis.fifths_correlation(similarity) < -0.98
    assert (np.diff(analysis.by_fifths(similarity)) < 0).all()
    assert (np.diff(analysis.by_fifths(analysis.triad_distances(embeddings, vocabulary))) > 0).all()
    assert replacement.substitute(145, embeddings, vocabulary, k=10) not in (0, 145)
    with pytest.raises(ConfigError, match="k is 0"):
        replacement.substitute(145, embeddings, vocabulary, k=0)
    statistics = analysis.corpus_statistics(slice_pieces(chorales))
    assert statistics["pieces"] == 4
    assert 0 < statistics["top_10_share"] < 1


@given(NOTES, st.integers(1, 4095))
@settings(max_examples=40, deadline=None)
def test_voicing(notes, code):
    voiced = replacement.voice(notes, code)
    assert pitch_class_codes(np.isin(np.arange(12), voiced[:, 2] % 12)) == code
    np.testing.assert_array_equal(voiced[: len(notes), :2], notes[:, :2])
    assert abs(voiced[: len(notes), 2] - notes[:, 2]).max() <= 6


def test_replacement_and_keys(chorales):
    notes = np.array([[0, 1, 60], [0, 1, 64], [0, 1, 67], [1, 1, 60]], dtype=float)
    piece = replacement.replace_slices(Piece("c", notes), {0: 545, 5: 145})
    assert piece.notes.tolist() == [[0, 1, 60], [0, 1, 65], [0, 1, 69], [1, 1, 60]]
    c_major = 0b101010110101
    assert replacement.best_major_scale(np.array([[0, 1, p] for p in (60, 62, 64, 65, 67, 69, 71)])) == c_major
    assert (
        replacement.krumhansl_scale(np.array([[0, 1, 60], [1, 1, 64], [2, 1, 67], [3, 2, 60], [5, 1, 65.0]])) == c_major
    )
    assert replacement.in_scale_share([145, 545, 137], c_major) == pytest.approx(2 / 3)
    assert replacement.tonal_distance(145, 145) == 0
    assert replacement.tonal_distance(145, 529) < replacement.tonal_distance(145, rotate(145, 6))


# data: opened music, the official layout, MIDI written by Music


class Options:
    def __init__(self, **values):
        self.__dict__ = {"beat": 1.0, "keys": "pitch-class", "end": "inclusive", "transpositions": False, **values}


@pytest.mark.parametrize("end", ["inclusive", "exclusive"])
@pytest.mark.parametrize("keys", ["pitch-class", "piano"])
def test_official_layout_gives_its_words_back(tmp_path, chorales, keys, end):
    sliced = slice_pieces(chorales, keys=keys)
    write_slices(tmp_path, [piece.id for piece in chorales], sliced)
    for source in (tmp_path, tmp_path / "music_slice.txt"):
        items = data.open(str(source), "music", MusicWord2Vec.readers).all
        assert items.ids.tolist() == [piece.id for piece in chorales]
        read = sequences_of(items.pieces, Options(keys=keys, end=end))
        # with exclusive ends nothing fills a silent slice after the last note
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, sliced, strict=True))


def test_silent_line_names_its_piece(tmp_path):
    (tmp_path / "music_slice.txt").write_text("145\n0 0\n137\n")
    with pytest.raises(DataError, match=r"music_slice#2: .*no notes"):
        data.open(str(tmp_path), "music", MusicWord2Vec.readers)
    (tmp_path / "music_slice.txt").write_text("145\n1 4096\n")
    with pytest.raises(DataError, match=r"line 2: '4096'"):
        data.open(str(tmp_path), "music", MusicWord2Vec.readers)


def test_training_sequences_in_all_keys(chorales):
    codes = training_sequences(chorales[:1], Options(transpositions=True))
    assert len(codes) == 12
    np.testing.assert_array_equal(codes[7], rotate(codes[0], 7))
    piano = training_sequences(chorales[:1], Options(transpositions=True, keys="piano"))
    assert len(piano) == 12
    np.testing.assert_array_equal(piano[5], words(chorales[0].notes, keys="piano"))


def test_music_is_written_as_midi(tmp_path, chorales):
    items = Music([f"a/{piece.id}" for piece in chorales], chorales)
    paths = items.write(tmp_path / "out")
    again = data.open(str(tmp_path / "out"), "music").all
    assert again.ids.tolist() == sorted(items.ids)
    for path, piece in zip(paths, chorales, strict=True):
        assert sorted(map(tuple, read_midi(path).notes.round(2))) == sorted(map(tuple, piece.notes.round(2)))
    with pytest.raises(DataError, match="is there already"):
        items.write(tmp_path / "out")
    with pytest.raises(DataError, match="leads out of"):
        Music(["../up"], chorales[:1]).write(tmp_path / "out")


# the system


@pytest.fixture(scope="module")
def music(chorales):
    return data.open(Music([piece.id for piece in chorales], chorales))


@pytest.fixture(scope="module")
def fitted(music):
    return MusicWord2Vec(MusicWord2Vec.Config.build("tiny", negatives=20)).fit(music)


def fit(source, run=None, length=None, **options):
    return MusicWord2Vec(MusicWord2Vec.Config.build("tiny", **{"negatives": 20, **options})).fit(
        source, run=run, **(length or {})
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gensim", "cross_pieces": True}, "cross_pieces: the engine gensim"),
        ({"engine": "gensim", "num_skips": 4}, "num_skips: the engine gensim"),
        ({"engine": "gensim", "shuffle": True}, "shuffle: the engine gensim"),
        ({"epochs": 3}, "epochs: the engine nce"),
        ({"shrink_windows": True}, "shrink_windows: the engine nce"),
        ({"beat": 0}, "beat"),
        ({"beat": float("nan")}, "beat"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"end": "never"}, "end"),
    ],
)
def test_options_that_cannot_be_honoured(options, message):
    with pytest.raises(ConfigError, match=message):
        MusicWord2Vec.Config.build(**options)
    assert MusicWord2Vec.Config.build(engine="gensim", cross_pieces=False).cross_pieces is False


@pytest.mark.parametrize(
    ("options", "length", "message"),
    [
        ({"negatives": 300}, {}, "negatives=300: fewer"),
        ({"num_skips": 7}, {}, "num_skips is 7"),
        ({"window": 5000}, {}, "one window 10001"),
        ({"engine": "gensim", "steps": 1_000_001}, {"steps": 5}, "whole passes"),
        ({"keys": "piano", "transpositions": False}, {"steps": 0}, "steps=0"),
    ],
)
def test_fits_that_are_refused_leave_no_run(music, tmp_path, options, length, message):
    with pytest.raises((ConfigError, DataError), match=message):
        fit(music, tmp_path / "run", length, **options)
    assert not (tmp_path / "run").exists()


def test_steps_and_epochs_are_official_batches(music, monkeypatch):
    taken, take = [], SkipGramGroups.take

    def watched(self, groups, rng):
        taken.extend(groups)
        return take(self, groups, rng)

    monkeypatch.setattr(SkipGramGroups, "take", watched)
    fit(music, length={"steps": 70})
    assert len(taken) == 70  # one step of 64 batches, one of 6
    taken.clear()
    made = fit(music, length={"epochs": 2})
    slices = made.assets["counts"]
    assert sorted(taken) == sorted([*range(-(-sum(slices) // 16))] * 2)


def test_curve_is_logged(fitted):
    rows = fitted.run.read_metrics()
    assert 30 < len(rows) <= 200
    assert np.mean([row["value"] for row in rows[-9:]]) < rows[0]["value"]


@pytest.mark.parametrize("shrink", [False, True])
def test_gensim_is_the_other_engine(music, shrink):
    options = {"engine": "gensim", "steps": 1_000_001, "lr": None, "shrink_windows": shrink}
    made = fit(music, length={"epochs": 2}, **options)
    assert [row["step"] for row in made.run.read_metrics()] == [0, 1]
    assert (made.model.nce_weights == 0).all()
    assert torch.equal(made.model.embeddings, fit(music, length={"epochs": 2}, **options).model.embeddings)
    assert np.isfinite(made.evaluate()["fifths_gap"].value)


def test_vector_of_a_piece_is_the_mean_of_its_known_slices(fitted, music):
    piece = music.test.pieces[0]
    ids = fitted.vocabulary.encode(words(piece.notes, end="exclusive"))
    made = fitted.embed(music.test)
    np.testing.assert_allclose(made.vectors[0], fitted.unit_vectors[ids[ids > 0]].mean(0), atol=1e-6)
    assert made.column("slices")[0] == len(ids)
    assert made.column("unknown_slices")[0] == (ids == 0).sum()
    cluster = np.stack([np.zeros(11), np.ones(11), np.arange(60, 71)], axis=1)
    assert words(cluster, end="exclusive").tolist() == [2047, 0]  # silence is a known slice, yet says nothing
    with pytest.raises(DataError, match=r"cluster: none of its sounding slices"):
        fitted.embed(Music(["cluster"], [Piece("cluster", cluster)]))


def test_words(fitted, tmp_path):
    made = fitted.words()
    assert made.key == ("word",)
    assert len(made) == fitted.vocabulary.size
    row = made.column("word").tolist().index("145")
    assert made.column("chord")[row] == "C-major triad"
    assert made.column("count").sum() == sum(fitted.assets["counts"])
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-5)
    names = [analysis.chord_name(code) for code in (0, 1, 2180, 529, 1160, 2180 | 32)]
    expected = [None, "C", "G-major triad", "A-minor triad", "Eb-major triad", "G-dominant seventh chord"]
    assert names == expected
    fitted.write_word2vec(tmp_path / "vectors.txt")
    again = MusicWord2Vec.from_official(tmp_path / "vectors.txt")
    np.testing.assert_allclose(again.unit_vectors, fitted.unit_vectors, atol=1e-6)
    assert again.vocabulary.known.tolist() == fitted.vocabulary.known.tolist()


def test_analyze(fitted, music):
    table = fitted.analyze(music.test).to_pandas()
    assert len(table[table.analysis == "chord distance"]) == 72
    profiles = {"triad distance", "pair distance", "key similarity", "in-key share", "tonal distance"}
    assert set(table.analysis) == profiles | {"chord distance", "corpus"}
    one = fitted.analyze(music.test, chords=("C",)).to_pandas()
    assert one[one.analysis == "chord distance"].to.tolist() == ["V", "IV", "vi", "bIII", "bII", "v"]
    expected = analysis.chord_distances(np.array([145]), np.array([[2180]]), fitted.unit_vectors, fitted.vocabulary)
    assert one.value[0] == pytest.approx(expected[0, 0], abs=1e-6)
    with pytest.raises(DataError, match="chord 'H'"):
        fitted.analyze(music.test, chords=("H",))
    small = fit(music, length={"steps": 64}, vocabulary=25, transpositions=False)
    with pytest.raises(DataError, match=r"slice 1096 .* 0 times .* V = 25"):
        small.analyze(music.test, chords=("Ebm",))
    assert small.analyze(music.test)["value"].null_count > 0


def test_generate(fitted, music, tmp_path):
    made = fitted.generate(music.train, n=2, seed=1, k=20)
    assert len(made) == 2
    same, other = (fitted.generate(music.train, n=2, seed=seed, k=20).fingerprint for seed in (1, 2))
    assert made.fingerprint == same != other
    paths = made.write(tmp_path)
    assert len(fitted.embed(str(tmp_path))) == len(paths)
    original = dict(zip(music.train.ids, music.train.pieces, strict=True))[made.ids[0].removesuffix("-varied")]
    kept = set(map(tuple, original.notes)) & set(map(tuple, made.pieces[0].notes))
    assert 0.5 < len(kept) / len(original.notes) < 1
    for options, message in (({"n": 9}, "n=9"), ({"n": 0}, "n=0"), ({"k": 0}, "k is 0"), ({"every": 0}, "every=0")):
        with pytest.raises(ConfigError, match=message):
            fitted.generate(music.train, **options)


def test_piano_keys(music):
    made = fit(music, length={"steps": 64}, keys="piano", transpositions=False)
    assert len(made.embed(music.train)) == 2
    assert made.words().column("word")[1].count("-") == 8
    assert not {"fifths_gap", "key_gap"} & set(made.evaluate())
    assert len(made.figures(music.test)) == 1
    for verb in (made.analyze, made.generate):
        with pytest.raises(ConfigError, match="keys=pitch-class"):
            verb(music.test)


def official(size=30, dim=6):
    generator = torch.Generator().manual_seed(0)
    shapes = {"embeddings": (size, dim), "nce_weights": (size, dim), "nce_biases": (size,)}
    return {f"{name}:0": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_official_variables(tmp_path):
    state, codes = official(), ["UNK", *range(100, 129)]
    made = MusicWord2Vec.from_official({**state, "vocabulary": codes})
    assert all(torch.equal(made.model.state_dict()[name.removesuffix(":0")], value) for name, value in state.items())
    assert made.config.dim == 6
    assert made.vocabulary.id(100) == 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"vocabulary.json: no such file"):
        MusicWord2Vec.from_official(tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.json").write_text("UNK 100")
    with pytest.raises(UserError, match=r"vocabulary.json: not JSON"):
        MusicWord2Vec.from_official(tmp_path / "model.safetensors")
    (tmp_path / "music_slice.txt").write_text("145 137\n")
    for name in ("music_slice.txt", "none.txt"):
        with pytest.raises(DataError, match=f"{name}: not vectors"):
            MusicWord2Vec.from_official(tmp_path / name)
    for content in (codes, {"codes": codes, "counts": [3] * 30, "left_out": {}}):
        (tmp_path / "vocabulary.json").write_text(json.dumps(content))
        again = MusicWord2Vec.from_official(tmp_path / "model.safetensors")
        assert again.fingerprint == made.fingerprint
    made.save(tmp_path / "run")
    assert MusicWord2Vec.load(tmp_path / "run").fingerprint == made.fingerprint
    for bad, message in (
        (state, "list of 30 words"),
        ({**state, "vocabulary": codes[1:]}, "list of 30 words"),
        ({**state, "vocabulary": ["UNK", "C", *codes[2:]]}, "neither a code nor"),
        ({"embeddings": state["embeddings:0"], "vocabulary": codes}, "expected embeddings, nce_weights"),
        ({**state, "nce_biases:0": torch.zeros(3), "vocabulary": codes}, "do not fit"),
    ):
        with pytest.raises(UserError, match=message):
            MusicWord2Vec.from_official(bad)


def test_claims_have_a_control():
    claims = catalog.entry("music_word2vec").claims()
    assert len({claim.name for claim in claims}) == len(claims) == 5
    assert all(claim.baselines == ("shuffled slices",) and claim.seeds >= 3 for claim in claims)
