"""Classes of items: learned from the training part, the same for every part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repertory.data.items import Items
from repertory.data.splits import Splits
from repertory.errors import DataError


def class_names(splits: Splits) -> tuple[str, list[str]]:
    """The label column, and the sorted classes of the training part.

    Raises:
        DataError: no label, several label columns, or one class only.
    """
    columns = splits.all.roles.get("label", ())
    if len(columns) != 1:
        asked = f"{len(columns)} label columns ({', '.join(columns)})" if columns else "no label"
        raise DataError(f"{splits.source}: {asked}: name the column of classes with label=COLUMN")
    names = sorted({str(value) for value in splits.train.column(columns[0])})
    if len(names) < 2:
        raise DataError(f"{splits.source}: column '{columns[0]}' has one class only, '{names[0]}'")
    return columns[0], names


def class_indices(items: Items, column: str, classes: list[str]) -> Tensor:
    """``[N]`` int64: the place of each item's class in ``classes``.

    Raises:
        DataError: a class that is not among them, with the item.
    """
    place = {name: i for i, name in enumerate(classes)}
    values = [str(value) for value in items.column(column)]
    for i, value in enumerate(values):
        if value not in place:
            raise DataError(
                f"item {items.ids[i]}: class '{value}' does not occur in training; there are {', '.join(classes)}"
            )
    return torch.from_numpy(np.array([place[value] for value in values], dtype=np.int64))
