"""Vectors on the plane: PCA of all, t-SNE of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from repertory.evaluation.checks import check_vectors


@dataclass(frozen=True)
class Projection:
    """Where each shown row lies.

    Attributes:
        rows: which rows of the vectors are shown, ``[M]``, ascending.
        views: ``"t-SNE"`` and ``"PCA"`` to points ``[M, 2]``; NaN where a row has no place in that view.
        explained: shares of the variance on the two PCA axes.
        total: number of vectors there were.
    """

    rows: np.ndarray
    views: dict[str, np.ndarray]
    explained: tuple[float, float]
    total: int


def project(vectors: ArrayLike, *, seed: int = 0, most: int = 5000, tsne_most: int = 2000) -> Projection:
    """A map of ``vectors [N, D]``, the same each time for one seed.

    PCA shows at most ``most`` rows. t-SNE (van der Maaten & Hinton 2008), on the first 50 principal components and
    started from them (Kobak & Berens 2019), shows at most ``tsne_most`` of these; below 10 vectors there is PCA alone.
    """
    vectors = check_vectors(vectors)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))[:most]
    rows = np.sort(order)
    components = min(50, *vectors[rows].shape)
    pca = PCA(components, svd_solver="randomized" if components == 50 else "full", random_state=seed)
    if len(rows) == 1:
        return Projection(rows, {"PCA": np.zeros((1, 2))}, (0.0, 0.0), len(vectors))
    with np.errstate(invalid="ignore", divide="ignore"):  # equal vectors have no variance to share out
        scores = pca.fit_transform(vectors[rows])
        explained = np.nan_to_num(np.append(pca.explained_variance_ratio_, 0.0)[:2])
    plane = np.pad(scores, ((0, 0), (0, max(0, 2 - components))))[:, :2]
    views = {"PCA": plane.astype(np.float32)}
    if len(rows) >= 10 and np.ptp(plane) > 0:
        chosen = np.searchsorted(rows, np.sort(order[:tsne_most]))
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        start = (plane[chosen] / max(plane[chosen, 0].std(), np.finfo(float).tiny) * 1e-4).astype(np.float32)
        embedding = TSNE(perplexity=perplexity, init=start, max_iter=500, random_state=seed, n_jobs=1)
        points = np.full((len(rows), 2), np.nan, np.float32)
        points[chosen] = embedding.fit_transform(scores[chosen])
        views = {"t-SNE": points, **views}
    return Projection(rows, views, (float(explained[0]), float(explained[1])), len(vectors))
