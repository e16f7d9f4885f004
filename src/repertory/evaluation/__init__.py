"""What vectors are worth: probes, neighbours, retrieval, clusters, geometry, each number with its interval."""

from __future__ import annotations

from repertory.evaluation.areas import auroc, average_precision
from repertory.evaluation.clustering import clustering
from repertory.evaluation.geometry import alignment, class_alignment, effective_rank, rankme, uniformity
from repertory.evaluation.knn import knn, neighbours
from repertory.evaluation.metrics import Metric, Metrics, bootstrap, paired_difference, resampled_interval
from repertory.evaluation.probe import Probe, linear_probe
from repertory.evaluation.retrieval import first_ranks, label_retrieval, retrieval
from repertory.evaluation.standard import describe

__all__ = [
    "Metric", "Metrics", "Probe", "alignment", "auroc", "average_precision", "bootstrap", "class_alignment",
    "clustering", "describe", "effective_rank", "first_ranks", "knn", "label_retrieval", "linear_probe", "neighbours",
    "paired_difference", "rankme", "resampled_interval", "retrieval", "uniformity",
]  # fmt: skip
