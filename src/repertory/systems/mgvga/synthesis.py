"""Logic synthesis by aigverse: recipes of passes, and what they make of a circuit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from repertory.data.circuits import Circuit, aigverse
from repertory.runs import seeded

OPERATIONS = ("balance", "rewrite", "rewrite -z", "refactor", "refactor -z", "resubstitute")
"""Steps of a recipe; -z also takes changes that gain nothing."""
RESULTS = ("gates", "depth")


def passed(network: Any, operation: int) -> Any:
    """An aigverse network after one step (a number of ``OPERATIONS``); its function stays the same."""
    algorithms = aigverse("algorithms")
    name = OPERATIONS[operation]
    if name == "balance":
        return algorithms.balancing(network)
    if name.startswith("rewrite"):
        return algorithms.aig_cut_rewriting(network, allow_zero_gain=name.endswith("-z"))
    if name.startswith("refactor"):
        return algorithms.sop_refactoring(network, allow_zero_gain=name.endswith("-z"))
    return algorithms.aig_resubstitution(network)


def measured(network: Any) -> tuple[int, int]:
    """AND gates and depth."""
    clean = aigverse("algorithms").cleanup_dangling(network)
    return clean.num_gates, aigverse("networks").DepthAig(clean).num_levels


class Tried(NamedTuple):
    """Recipes [r, steps] of a circuit, what they came to [r, results], and the names of the results."""

    recipes: np.ndarray
    results: np.ndarray
    names: tuple[str, ...]

    @property
    def standardised(self) -> np.ndarray:
        """Results by the design's own mean and standard deviation, as in the paper; 0 where nothing varies."""
        spread = self.results.std(axis=0)
        centred = self.results - self.results.mean(axis=0)
        made: np.ndarray = (centred / np.where(spread > 0, spread, 1)).astype(np.float32)
        return made


def drawn_recipes(circuit: Circuit, recipes: int, steps: int) -> np.ndarray:
    """Random recipes [recipes, steps] of ``OPERATIONS``; a function of the circuit's content alone."""
    with seeded("recipes", circuit.check()):
        return np.random.randint(len(OPERATIONS), size=(recipes, steps))


@lru_cache(maxsize=4096)
def tried(circuit: Circuit, recipes: int, steps: int) -> Tried:
    """The synthesis results that the circuit brings, or else those of random recipes, run here.

    Args:
        recipes: how many. steps: of each.
    """
    if circuit.recipes is not None and circuit.results is not None:
        names = ("nodes", "area", "delay") if circuit.results.shape[1] == 3 else tuple(
            f"result {k}" for k in range(circuit.results.shape[1])
        )  # fmt: skip
        return Tried(circuit.recipes, circuit.results, names)
    drawn = drawn_recipes(circuit, recipes, steps)
    start = circuit.aig()
    made: dict[tuple[int, ...], Any] = {(): start}
    results = []
    for recipe in drawn.tolist():
        for end in range(1, steps + 1):
            done = tuple(recipe[:end])
            if done not in made:
                made[done] = passed(made[done[:-1]], done[-1])
        results.append(measured(made[tuple(recipe)]))
    return Tried(drawn, np.array(results, np.float64), RESULTS)
