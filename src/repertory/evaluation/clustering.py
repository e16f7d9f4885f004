"""Do the clusters of the vectors agree with the labels?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from repertory.errors import DataError
from repertory.evaluation.checks import check_labels, check_vectors, task_of, unit
from repertory.evaluation.metrics import Metric, Metrics

MOST = 20_000  # items that the centres are fitted on


def clustering(vectors: ArrayLike, labels: ArrayLike, *, clusters: int | None = None, seed: int = 0) -> Metrics:
    """``nmi`` in [0, 1] and ``ari`` in [-0.5, 1] between k-means of the unit vectors and the labels.

    ``clusters`` defaults to the number of classes. No interval: resampling items repeats them, which raises both.
    """
    vectors = unit(check_vectors(vectors))
    labels = check_labels(labels, len(vectors))
    if task_of(labels) != "classes":
        raise DataError("clustering: needs one class for each item; labels are numbers or a matrix")
    clusters = clusters or len(np.unique(labels))
    if not 2 <= clusters <= len(vectors):
        raise DataError(
            f"clustering: {clusters} clusters of {len(vectors)} items; needs between 2 and the number of items"
        )
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(vectors), MOST, replace=False) if len(vectors) > MOST else slice(None)
    found = KMeans(clusters, n_init=10, random_state=seed).fit(vectors[rows]).predict(vectors)
    about = f"k-means with {clusters} clusters of unit vectors against the labels, {len(vectors)} items"
    return Metrics(
        {
            "nmi": Metric(float(normalized_mutual_info_score(labels, found)), higher_is_better=True, about=about),
            "ari": Metric(float(adjusted_rand_score(labels, found)), higher_is_better=True, about=about),
        }
    )
