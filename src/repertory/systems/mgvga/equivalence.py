"""Logic equivalence of nodes: which pairs compute the same function, by simulation."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from repertory.data.circuits import Circuit, aigverse, exhaustive
from repertory.data.circuits.circuit import AND
from repertory.runs import seeded
from repertory.systems.mgvga.synthesis import OPERATIONS, passed

EXHAUSTIVE = 12
"""Inputs up to which all patterns are simulated; beyond, so many random words of 64 patterns."""
WORDS = 512


class Pairs(NamedTuple):
    """AND nodes of a circuit, two by two.

    Attributes:
        circuit: in which they are. one, other: [p] node numbers. equal: [p] whether they compute the same function.
        exact: whether all input patterns were simulated.
    """

    circuit: Circuit
    one: np.ndarray
    other: np.ndarray
    equal: np.ndarray
    exact: bool


def restructured(circuit: Circuit) -> Circuit:
    """The circuit and a balanced copy of it over the same inputs, so that functions occur in several structures."""
    network = aigverse("networks").Aig()
    inputs = [network.create_pi() for _ in range(circuit.counts["inputs"])]
    circuit.build(network, inputs)
    Circuit.of_aig(passed(circuit.aig(), OPERATIONS.index("balance"))).build(network, inputs)
    return Circuit.of_aig(network)


def patterns(inputs: int) -> tuple[np.ndarray, bool]:
    """Input patterns [inputs, words] to simulate, and whether they are all there are."""
    if inputs <= EXHAUSTIVE:
        return exhaustive(inputs), True
    return np.random.randint(0, 2**64, (inputs, WORDS), np.uint64), False


@lru_cache(maxsize=1024)
def pairs_of(circuit: Circuit, most: int = 500) -> Pairs:
    """Pairs of equal AND nodes, and as many that differ but are as often 1; a function of the circuit alone.

    Args:
        circuit: gets a restructured copy beside it. most: pairs of each sort.
    """
    with seeded("equivalence", circuit.check()):
        both = restructured(circuit)
        given, exact = patterns(both.counts["inputs"])
        values = both.simulate(given)
        gates = np.flatnonzero(both.node_type == AND)
        ones = np.bitwise_count(values[gates]).sum(axis=1)
        gates = gates[np.argsort(ones, kind="stable")]
        ones = np.sort(ones)
        _, group = np.unique(values[gates], axis=0, return_inverse=True)
        order = np.argsort(group, kind="stable")
        same = np.flatnonzero(group[order][1:] == group[order][:-1])
        one, other = gates[order[same]], gates[order[same + 1]]
        unlike = np.flatnonzero(group[1:] != group[:-1])
        different = (gates[unlike], gates[unlike + 1])
        size = min(most, len(one), len(unlike))
        first = np.sort(np.random.permutation(len(one))[:size])
        closest = np.argsort((ones[1:] - ones[:-1])[unlike] + np.random.rand(len(unlike)))[:size]
    return Pairs(
        both,
        np.concatenate([one[first], different[0][closest]]),
        np.concatenate([other[first], different[1][closest]]),
        np.repeat([True, False], size),
        exact,
    )
