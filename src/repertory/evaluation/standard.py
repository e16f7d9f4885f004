"""Everything that can be said of any vectors, in one call."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repertory.evaluation.checks import check_labels, check_vectors, task_of
from repertory.evaluation.clustering import clustering
from repertory.evaluation.geometry import class_alignment, effective_rank, rankme, uniformity
from repertory.evaluation.knn import knn
from repertory.evaluation.metrics import Metric, Metrics
from repertory.evaluation.probe import linear_probe
from repertory.evaluation.retrieval import label_retrieval

PAIRS = 10_000  # items whose pairs uniformity looks at
SEARCHED = 20_000  # items that search each other by label


def describe(
    vectors: ArrayLike,
    labels: ArrayLike | None = None,
    train_vectors: ArrayLike | None = None,
    train_labels: ArrayLike | None = None,
    seed: int = 0,
) -> Metrics:
    """Every measure that applies to ``vectors [N, D]``.

    Always effective rank, RankMe and, from two items, uniformity. With classes ``[N]`` also linear probe, kNN,
    retrieval by label, clustering and alignment; with numbers ``[N]`` or a 0/1 matrix ``[N, L]`` the probe.
    Training vectors and labels, where given, are what probe and kNN learn from; else both take ``vectors`` apart.
    """
    vectors = check_vectors(vectors)
    rng = np.random.default_rng(seed)

    def sample(most: int) -> np.ndarray:
        return np.sort(rng.choice(len(vectors), min(most, len(vectors)), replace=False))

    metrics = Metrics()
    if labels is not None:
        labels = check_labels(labels, len(vectors))
        part = {"train_vectors": train_vectors, "train_labels": train_labels, "seed": seed}
        metrics |= linear_probe(vectors, labels, **part).metrics
        if task_of(labels) == "classes":
            metrics |= knn(vectors, labels, **part)
            rows = sample(SEARCHED)
            if np.unique(labels[rows], return_counts=True)[1].max() > 1:
                metrics |= label_retrieval(vectors[rows], labels[rows], seed=seed)
                about = "mean squared distance of unit vectors of one class"
                metrics |= {"alignment": Metric(class_alignment(vectors, labels), higher_is_better=False, about=about)}
            if len(np.unique(labels)) > 1:
                metrics |= clustering(vectors, labels, seed=seed)
    if len(vectors) > 1:
        rows = sample(PAIRS)
        about = f"log mean Gaussian potential over pairs of {len(rows)} unit vectors"
        metrics |= {"uniformity": Metric(uniformity(vectors[rows]), higher_is_better=False, about=about)}
    width = vectors.shape[1]
    return metrics | {
        "effective_rank": Metric(effective_rank(vectors), about=f"directions in use, of {width}"),
        "rankme": Metric(rankme(vectors), higher_is_better=True, about=f"RankMe, of {width}"),
    }
