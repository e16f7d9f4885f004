"""What multimodal researchers look at: which answers are retrieved, and how sharply."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from repertory.figures import heatmap


def of_retrieval(scores: Tensor, labels: np.ndarray | None, target: str) -> dict[str, Any]:
    """The confusion of what is asked and what is retrieved, and the scores of some queries.

    Args:
        scores: [queries, candidates], the right candidate first.
        labels: [queries, candidates] labels of the candidates, or None.
        target: the modality that is retrieved.
    """
    shown = scores[:24].numpy()
    figures = {
        f"Scores of {len(shown)} queries (rows) with their candidates; the right {target} is number 0": heatmap(
            shown, x=[str(i) for i in range(shown.shape[1])], y=[str(i) for i in range(len(shown))],
            x_title="candidate", y_title="query",
        )
    }  # fmt: skip
    if labels is not None:
        asked, got = labels[:, 0], labels[np.arange(len(labels)), scores.argmax(dim=1).numpy()]
        names = np.unique(labels)
        if len(names) <= 40:
            counts = np.array(
                [[np.mean(got[asked == a] == b) if (asked == a).any() else 0 for b in names] for a in names]
            )
            title = (
                f"Label of the {target} that is retrieved (columns) for each label asked for (rows), share of queries"
            )
            text = [str(name) for name in names]
            figures[title] = heatmap(counts, x=text, y=text, x_title="retrieved", y_title="asked for")
    return figures
