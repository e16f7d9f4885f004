"""Gaussian diffusion (Ho et al. 2020) with DDIM sampling (Song et al. 2021), as UMD uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from repertory.errors import ConfigError

Schedule = Literal["cosine", "linear"]


def betas(schedule: Schedule, timesteps: int = 1000) -> Tensor:
    """Variances ``[T]`` float64 of the steps: ``cosine`` (Nichol & Dhariwal 2021, for pixels) or ``linear`` (latents).

    The linear schedule runs from 1e-4 to 2e-2 at 1,000 steps and is scaled by ``1000 / T``.
    """
    if schedule == "linear":
        return torch.linspace(1e-4, 2e-2, timesteps, dtype=torch.float64) * (1000 / timesteps)
    u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


class Diffusion(nn.Module):
    """The noise of steps 0..T - 1: ``x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps``.

    Computed in float64, used in float32. ``follow="official"`` keeps the official code's posterior variance, which
    divides by ``1 - abar_T``, where the step's own variance belongs; DDIM does not use it.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    posterior_variance: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(
        self, timesteps: int = 1000, schedule: Schedule = "cosine", follow: Literal["paper", "official"] = "paper"
    ) -> None:
        super().__init__()
        self.timesteps = timesteps
        beta = betas(schedule, timesteps)
        total = torch.cumprod(1 - beta, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), total[:-1]])
        variance = beta * (1 - before) / (1 - total)
        if follow == "official":
            variance = beta * (1 - total) / (1 - total[-1])
        tables = {
            "betas": beta, "alphas_cumprod": total, "alphas_cumprod_prev": before, "posterior_variance": variance,
            "posterior_mean_coef1": beta * before.sqrt() / (1 - total),
            "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - total),
        }  # fmt: skip
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def _at(self, steps: Tensor | int) -> Tensor:
        """Signal shares ``abar`` at ``steps`` (``[B, 1]``, or one for all), to be broadcast over ``[B, C, H, W]``."""
        if isinstance(steps, int):
            return self.alphas_cumprod[steps]
        return self.alphas_cumprod[steps.long()][..., None, None]

    def noised(self, images: Tensor, steps: Tensor | int, noise: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` at ``steps`` ``[B, 1]`` in 0..T - 1, with ``noise`` of their shape."""
        signal = self._at(steps)
        return signal.sqrt() * images + (1 - signal).sqrt() * noise

    def clean(self, x: Tensor, steps: Tensor | int, noise: Tensor, clip: bool = True) -> Tensor:
        """The clean images that noised ones ``x`` and predicted ``noise`` mean; clipped to -1..1 for pixels."""
        signal = self._at(steps)
        image = (x - (1 - signal).sqrt() * noise) / signal.sqrt()
        return image.clamp(-1, 1) if clip else image

    def noise_of(self, x: Tensor, steps: Tensor | int, images: Tensor) -> Tensor:
        """The noise that noised images ``x`` and predicted clean ``images`` mean."""
        signal = self._at(steps)
        return (x - signal.sqrt() * images) / (1 - signal).sqrt()

    def ddim(
        self,
        x: Tensor,
        steps: Tensor | int,
        next_steps: Tensor | int,
        noise: Tensor,
        fresh: Tensor,
        eta: float = 1.0,
        clip: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """From ``steps`` to ``next_steps``: the next images and the clean ones that are predicted on the way.

        ``noise`` is predicted for ``x``; ``fresh`` noise is added with deviation
        ``eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')``, except at step 0. ``eta`` 0 adds none, 1 as much as DDPM.
        """
        image = self.clean(x, steps, noise, clip)
        noise = self.noise_of(x, steps, image)  # clipping changed what the noise must have been
        now, then = self._at(steps), self._at(next_steps)
        sigma = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).clamp(min=0).sqrt()
        mean = then.sqrt() * image + (1 - then - sigma**2).clamp(min=0).sqrt() * noise
        moving = steps > 0 if isinstance(steps, int) else (steps > 0)[..., None, None]
        return mean + moving * sigma * fresh, image

    def sampling_steps(self, n: int) -> list[int]:
        """About ``n`` falling steps from T - 1, every ``ceil(T / n)``-th, and 0.

        Raises:
            ConfigError: n is not in 1..T.
        """
        if not 1 <= n <= self.timesteps:
            raise ConfigError(f"sampling_steps={n}: it must lie in 1..{self.timesteps}")
        return [*range(self.timesteps - 1, 0, -self.timesteps // n), 0]

    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        start: Tensor,
        n: int = 125,
        eta: float = 1.0,
        clip: bool = True,
        fresh: Tensor | None = None,
    ) -> Tensor:
        """Images ``[B, C, H, W]`` from noise ``start``.

        Args:
            predict: from noised images and their step 0..T - 1 to the noise in them.
            n: about how many steps (see :meth:`sampling_steps`).
            fresh: ``[steps, B, C, H, W]``: the noise added after each prediction; None draws it.
        """
        x, path = start, self.sampling_steps(n)
        for i, (step, following) in enumerate(pairwise(path)):
            drawn = torch.randn_like(x) if fresh is None else fresh[i]
            x, _ = self.ddim(x, step, following, predict(x, step), drawn, eta, clip)
        return self.clean(x, 0, predict(x, 0), clip)
