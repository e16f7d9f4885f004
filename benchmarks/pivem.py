"""One step of PiVeM against the straightforward form: lists by pair, gathers by bin, full Kronecker factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from benchmarks.measure import compare
from repertory.systems.pivem import Cells, PiecewiseVelocityModel, negative_log_likelihood

EVENTS = 10_395
NODES = 75


class Straightforward:
    """The likelihood and prior as they stand in the paper, step by step under autograd."""

    def __init__(self, model: PiecewiseVelocityModel, pairs: Tensor, times: Tensor) -> None:
        self.model, bins = model, len(model.v)
        self.pairs = list(combinations(range(NODES), 2))
        cells = Cells.of(pairs, times, NODES, bins)
        count, residual, squared = cells.dense(NODES, bins)
        self.counts = {pair: count[n] for n, pair in enumerate(self.pairs)}
        self.residuals = {pair: residual[n] for n, pair in enumerate(self.pairs)}
        self.squares = {pair: squared[n] for n, pair in enumerate(self.pairs)}

    def positions(self, times: Tensor, nodes: Tensor) -> Tensor:
        """[times, nodes, D]: every bin's displacement is added up anew for every time."""
        x0, v = self.model.centred()
        bins = len(v)
        lengths = (times[:, None] - self.model.width * torch.arange(bins)).clamp(0, self.model.width)
        moved = lengths[:, :, None, None] * v[None, :, nodes].expand(len(times), -1, -1, -1)
        return x0[nodes] + moved.sum(1)

    def negative_log_likelihood(self) -> Tensor:
        count = torch.stack([self.counts[pair] for pair in self.pairs], dim=1)
        residual = torch.stack([self.residuals[pair] for pair in self.pairs], dim=1)
        squared = torch.stack([self.squares[pair] for pair in self.pairs], dim=1)
        i, j = torch.tensor(self.pairs).T
        bins, width, (_, v) = len(self.model.v), self.model.width, self.model.centred()
        starts = width * torch.arange(bins)
        dx = self.positions(starts, i) - self.positions(starts, j)
        dv = v[:, i] - v[:, j]
        bias = self.model.beta[i] + self.model.beta[j]
        n = dv.norm(dim=-1) + 1e-6
        q = (dx * dv).sum(-1) / n
        scale = math.sqrt(math.pi) / (2 * n) * torch.exp(bias + q.square() - dx.square().sum(-1))
        integral = scale * (torch.erf(n * width + q) - torch.erf(q))
        log_intensity = count * (bias - dx.square().sum(-1)) - 2 * (dx * dv).sum(-1) * residual
        return integral.sum() - (log_intensity - dv.square().sum(-1) * squared).sum()

    def negative_log_prior(self) -> Tensor:
        prior, (x0, v) = self.model.prior, self.model.centred()
        z = torch.cat([x0[None], v]).reshape(-1)
        eye = torch.eye(x0.shape[1])
        factor = torch.kron(prior.bin_factor().float().contiguous(), torch.kron(prior.node_factor(), eye))
        noise = prior.noise
        capacitance = torch.eye(factor.shape[1]) + factor.T @ factor / noise.square()
        inverse = torch.linalg.inv(capacitance)
        projected = factor.T @ z
        quadratic = (z @ z - projected @ inverse @ projected / noise.square()) / noise.square() / prior.scale**2
        log_det = 2 * len(z) * math.log(prior.scale) + len(z) * noise.square().log() + torch.logdet(capacitance)
        return ((quadratic + log_det + len(z) * math.log(2 * math.pi)) / 2).sum()

    def loss(self) -> Tensor:
        return self.negative_log_likelihood() + self.negative_log_prior()


def step(form: str, bins: int, rank: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = PiecewiseVelocityModel(NODES, bins, 2, rank, 100.0)
    with torch.no_grad():
        model.v.normal_(0, 5)
    pairs = torch.randint(NODES, (2 * EVENTS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]][:EVENTS]
    times = torch.rand(EVENTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=form == "ours")
    if form == "straightforward":
        loss = Straightforward(model, pairs, times).loss
    else:
        cells = Cells.of(pairs, times, NODES, bins)

        def loss() -> Tensor:
            nll = negative_log_likelihood(*model.trajectories(), model.beta, model.width, cells)
            return nll + model.prior(*model.centred())

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def main() -> None:
    for bins, rank in ((20, 5), (100, 10)):
        compare(
            "pivem",
            f"one step of all parameters, N {NODES}, B {bins}, k {rank}",
            partial(step, "ours", bins, rank),
            partial(step, "straightforward", bins, rank),
            {"nodes": NODES, "bins": bins, "rank": rank, "events": EVENTS},
            repeats=3 if bins > 50 else 25,
        )


if __name__ == "__main__":
    main()
