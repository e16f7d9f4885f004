"""What music researchers look at: tonal maps, chord and key distances, piano rolls."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from repertory.data.notes import Piece
from repertory.embeddings import Embeddings
from repertory.figures import PALETTE, heatmap, styled
from repertory.systems.music_word2vec.analysis import (
    MAJOR,
    MINOR,
    PITCHES,
    ROLES,
    by_fifths,
    fifth_steps,
    role_distances,
    triad_distances,
    triads,
)
from repertory.systems.music_word2vec.slicing import rotate
from repertory.systems.music_word2vec.vocabulary import Vocabulary

BY_FIFTHS = np.arange(12) * 7 % 12
"""Pitch classes along the circle of fifths, C first."""
SHOWN = 250
"""Slices on the map."""
SYMBOLS = {
    "major triad": "", "minor triad": "m", "diminished triad": "°", "augmented triad": "+",
    "major seventh chord": "maj7", "minor seventh chord": "m7", "dominant seventh chord": "7",
    "half-diminished seventh chord": "ø7", "diminished seventh chord": "°7",
}  # fmt: skip
COLOURS = [f"hsl({30 * step}, 62%, 52%)" for step in range(12)]
"""Of roots, once round the circle of fifths."""


def tonal_map(vectors: np.ndarray, vocabulary: Vocabulary) -> go.Figure:
    """The major and minor triads that are in the vocabulary on their first two principal components."""
    points = np.stack([triads(vectors, vocabulary, chord)[BY_FIFTHS] for chord in (MAJOR, MINOR)])  # [mode, 12, dim]
    known = np.isfinite(points[..., 0])
    figure = go.Figure()
    if known.sum() > 2:
        plane = np.full((2, 12, 2), np.nan)
        plane[known] = PCA(2).fit_transform(points[known])
        for mode, places, suffix, colour in zip(("major", "minor"), plane, ("", "m"), PALETTE, strict=False):
            closed = [*range(12), 0]
            figure.add_scatter(
                x=places[closed, 0], y=places[closed, 1], mode="lines+markers+text", name=mode,
                text=[PITCHES[pitch] + suffix for pitch in BY_FIFTHS[closed]], textposition="top center",
                textfont={"color": colour, "size": 14}, marker={"size": 8, "color": colour},
                line={"width": 1, "color": colour, "dash": "dot"}, hoverinfo="text",
            )  # fmt: skip
    figure.update_xaxes(title_text="first component", zeroline=False)
    figure.update_yaxes(title_text="second component", zeroline=False, scaleanchor="x")
    return styled(figure, height=520)


def word_map(words: Embeddings, vocabulary: Vocabulary) -> go.Figure:
    """The most frequent slices by t-SNE, with their names; triads and seventh chords are coloured by root."""
    shown = np.flatnonzero(words.column("count") > 0)
    shown = shown[shown > 0][:SHOWN]
    figure = go.Figure()
    if len(shown) > 9:
        similar = TSNE(2, perplexity=min(30, (len(shown) - 1) / 3), init="pca", metric="cosine", random_state=0)
        places = similar.fit_transform(words.vectors[shown])
        names, chords = words.column("word")[shown], words.column("chord")[shown]
        count = words.column("count")[shown]
        symbols = [symbol(chord) for chord in chords]
        hover = [f"{chord or name}, {n} times" for name, chord, n in zip(names, chords, count, strict=True)]
        root = np.array(
            [PITCHES.index(str(c).split("-")[0]) if s else -1 for c, s in zip(chords, symbols, strict=True)]
        )
        size = 5 + 9 * np.sqrt(count / count.max())
        for place, pitch in enumerate([-1, *BY_FIFTHS]):
            of_root = root == pitch
            if of_root.any():
                figure.add_scatter(
                    x=places[of_root, 0], y=places[of_root, 1], mode="markers+text",
                    name="others" if pitch < 0 else f"on {PITCHES[pitch]}",
                    marker={"size": size[of_root], "color": "#9a9ea6" if pitch < 0 else COLOURS[place - 1],
                            "opacity": 0.35 if pitch < 0 else 0.95},
                    text=[symbols[i] for i in np.flatnonzero(of_root)], textposition="top center", textfont_size=10,
                    hovertext=[hover[i] for i in np.flatnonzero(of_root)], hoverinfo="text",
                )  # fmt: skip
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(showticklabels=False, showgrid=False, zeroline=False)
    return styled(figure, height=640)


def symbol(chord: str | None) -> str:
    """``Cm`` for ``C-minor triad``; empty for what has no symbol here."""
    root, _, kind = (chord or "").partition("-")
    return root + SYMBOLS[kind] if kind in SYMBOLS else ""


def chord_distances(vectors: np.ndarray, vocabulary: Vocabulary) -> go.Figure:
    """The official table for all twelve centres."""
    table = role_distances(rotate(MAJOR, BY_FIFTHS), vectors, vocabulary)
    figure = heatmap(table, x=list(ROLES), y=[PITCHES[pitch] for pitch in BY_FIFTHS], x_title="role", y_title="I")
    return figure.update_traces(texttemplate="%{z:.2f}")


def fifths_profile(vectors: np.ndarray, vocabulary: Vocabulary) -> go.Figure:
    """Mean distances of major triads, and of the steps I -> V of two keys, by fifths between them."""
    figure = go.Figure()
    for name, table in (
        ("major triads", triad_distances(vectors, vocabulary)),
        ("steps I to V of two keys", fifth_steps(vectors, vocabulary)),
    ):
        figure.add_scatter(x=np.arange(7), y=by_fifths(table), mode="lines+markers", name=name)
    figure.update_xaxes(title_text="fifths apart", dtick=1)
    figure.update_yaxes(title_text="cosine distance", rangemode="tozero")
    return styled(figure, height=300)


def keys(similarity: np.ndarray) -> go.Figure:
    """Cosine similarity [12, 12] of keys, rows and columns along the circle of fifths."""
    names = [PITCHES[pitch] for pitch in BY_FIFTHS]
    return heatmap(similarity[np.ix_(BY_FIFTHS, BY_FIFTHS)], x=names, y=names, diverging=True)


def piano_roll(piece: Piece, varied: Piece, beat: float, slices: int = 48) -> go.Figure:
    """The beginning of a piece: what stayed, what was taken away and what came in its place."""
    until = slices * beat
    before, after = ({tuple(note) for note in p.notes[p.notes[:, 0] < until].tolist()} for p in (piece, varied))
    figure = go.Figure()
    for name, notes, colour, width in (
        ("kept", before & after, "#8b9099", 6),
        ("original", before - after, PALETTE[0], 6),
        ("replacement", after - before, PALETTE[1], 6),
    ):
        rows = np.array(sorted(notes)).reshape(-1, 3)
        start, end, pitch = rows[:, 0], rows[:, 0] + rows[:, 1] - 0.06 * beat, rows[:, 2]
        gap = np.full(len(rows), np.nan)
        figure.add_scatter(
            x=np.stack([start, end, gap], axis=1).ravel(), y=np.stack([pitch, pitch, gap], axis=1).ravel(), name=name,
            mode="lines", line={"width": width, "color": colour}, opacity=0.85, hoverinfo="x+y",
        )  # fmt: skip
    pitches = np.concatenate([piece.notes[:, 2], varied.notes[:, 2]])
    octaves = np.arange(pitches.min() // 12, pitches.max() // 12 + 1) * 12
    figure.update_xaxes(title_text="quarter notes", dtick=4 * beat)
    figure.update_yaxes(tickvals=octaves, ticktext=[f"C{int(o) // 12 - 1}" for o in octaves])
    return styled(figure, height=380)
