"""Faces as batches, their action units and their subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.transforms.images import Pixels
from repertory.errors import DataError, nearest


@dataclass(frozen=True)
class Faces:
    """From item numbers to a batch: ``images`` ``[B, 3, S, S]``, ``labels`` ``[B, K]`` and, if given, ``subjects``
    ``[B]`` int64."""

    pixels: Pixels
    subjects: Tensor | None = None

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        batch = self.pixels(rows)
        if self.subjects is not None:
            batch["subjects"] = self.subjects[torch.as_tensor(np.asarray(rows))]
        return batch


def action_units(items: Images, names: Sequence[str]) -> np.ndarray:
    """The columns ``names`` as ``[N, K]`` float: 1 shown, 0 not, NaN not coded.

    Raises:
        DataError: no such column, or another value, with the item and the column.
    """
    columns = []
    for name in names:
        try:
            values = items.column(name).astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"column '{name}' holds texts; an action unit is 1, 0 or empty") from None
        bad = np.flatnonzero(~(np.isin(values, (0, 1)) | np.isnan(values)))
        if len(bad):
            raise DataError(
                f"item {items.ids[bad[0]]}: column '{name}' is {values[bad[0]]:g}; an action unit is 1, 0 or empty"
            )
        columns.append(values)
    return np.stack(columns, axis=1)


def subject_column(items: Images) -> str | None:
    """The column that says who is seen: the first of role ``group``."""
    names = items.roles.get("group", ())
    return names[0] if names else None


def subjects_of(items: Images) -> np.ndarray:
    """Who is seen in each item, texts ``[N]``.

    Raises:
        DataError: no such column, or an item without a subject.
    """
    column = subject_column(items)
    if column is None:
        raise DataError("no subjects: name the column that says who is seen with group=COLUMN")
    values = items.column(column)
    missing = pd.isna(values)
    if missing.any():
        raise DataError(f"item {items.ids[missing.argmax()]}: column '{column}' is empty; every face needs a subject")
    return values.astype(str)


def subject_indices(items: Images, subjects: Sequence[str]) -> Tensor:
    """``[N]`` int64: the place of each item's subject in the sorted ``subjects``.

    Raises:
        DataError: a subject that is not among them, with the item.
    """
    place = {name: i for i, name in enumerate(subjects)}
    values = subjects_of(items)
    for item, value in zip(items.ids, values, strict=True):
        if value not in place:
            raise DataError(f"item {item}: subject '{value}' is not in the list of {len(place)}{nearest(value, place)}")
    return torch.from_numpy(np.array([place[value] for value in values], dtype=np.int64))


def check_exclusive(splits: Splits[Images]) -> None:
    """Nobody is trained on and tested on, or validated on.

    Raises:
        DataError: somebody is; names them.
    """
    if splits.rule == "none" or subject_column(splits.all) is None:
        return
    trained = set(subjects_of(splits.train))
    for part, items in (("test", splits.test), ("validation", splits.val)):
        both = sorted(trained & set(subjects_of(items)))
        if both:
            more = f" and {len(both) - 5} more" if len(both) > 5 else ""
            raise DataError(
                f"{splits.source}: subjects in both the training and the {part} part: {', '.join(both[:5])}{more}; "
                f"people must be in one part alone (split=group:{subject_column(splits.all)} draws such parts)"
            )
