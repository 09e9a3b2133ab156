"""Noise schedules: the two tables that define a forward process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The forward process ``x_t = alpha_t x_0 + sigma_t noise``, t = 0..T-1 (0 is the least noisy).

    Variance preserving schedules (Ho et al., arXiv 2006.11239) have ``alpha_t = sqrt(abar_t)`` and
    ``sigma_t = sqrt(1 - abar_t)``. A variance exploding process is held as the variance preserving one
    that it is after a change of variables, see :meth:`variance_exploding`: everything that is true of a
    schedule here is true of both. The members that need betas say so.

    Args:
        alpha: signal coefficient, float64, shape (T,), > 0.
        sigma: noise coefficient (a standard deviation), float64, shape (T,).
        exploding: whether the process was a variance exploding one.
    """

    alpha: Tensor
    sigma: Tensor
    exploding: bool = False

    def __post_init__(self) -> None:
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or len(self.alpha) < 2:
            raise ValueError("alpha and sigma must be two tables of the same length, at least 2")
        if self.alpha.dtype != torch.float64 or self.sigma.dtype != torch.float64:
            raise ValueError("alpha and sigma must be float64")

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Variance preserving schedule from betas, shape (T,), each in (0, 1)."""
        betas = betas.to(torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("every beta must lie strictly between 0 and 1")
        abar = torch.cumprod(1 - betas, dim=0)
        return cls(abar.sqrt(), (1 - abar).sqrt())

    @classmethod
    def linear(cls, timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
        """The schedule of DDPM: betas evenly spaced from ``start`` to ``end``."""
        return cls.from_betas(torch.linspace(start, end, timesteps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
        """Square roots of the betas evenly spaced: the schedule of latent diffusion."""
        roots = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64)
        return cls.from_betas(roots**2)

    @classmethod
    def cosine(cls, timesteps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """The cosine schedule (arXiv 2102.09672), as ``squaredcos_cap_v2`` of diffusers."""

        def abar(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [
            min(1 - abar((t + 1) / timesteps) / abar(t / timesteps), max_beta) for t in range(timesteps)
        ]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float64))

    @classmethod
    def variance_exploding(
        cls, timesteps: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0
    ) -> NoiseSchedule:
        """Noise at geometric levels, as in ``ScoreSdeVeScheduler`` of diffusers, made variance preserving.

        Song et al., arXiv 2011.13456: ``z_t = z_0 + level_t noise`` for images z_0 in [0, 1]. The defaults
        are theirs for CIFAR-10. ``x_t = alpha_t (2 z_t - 1)``, ``alpha_t = 1 / sqrt(1 + 4 level_t^2)``, is

            ``x_t = alpha_t x_0 + sigma_t noise``,  ``sigma_t = 2 level_t alpha_t``

        for images x_0 in [-1, 1], with ``alpha_t^2 + sigma_t^2 = 1``. A shift ``level_t r`` of z_t is
        ``sigma_t r`` here: r counts in standard deviations of the noise in both, and starts from about unit
        noise in place of ``sigma_max`` noise.

        Args:
            sigma_min: of the levels, for images in [0, 1]; ``sigma_max`` likewise, and larger.

        Raises:
            ValueError: levels that do not ascend from above 0.
        """
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"noise levels ascend from above 0, not from {sigma_min} to {sigma_max}")
        ends = math.log(sigma_min), math.log(sigma_max)
        ratio = 2 * torch.linspace(*ends, timesteps, dtype=torch.float64).exp()
        alpha = (1 + ratio**2).rsqrt()
        return cls(alpha, ratio * alpha, exploding=True)

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def levels(self) -> Tensor:
        """Standard deviation of the noise beside images in [0, 1] of weight 1: float64, shape (T,)."""
        return self.sigma / self.alpha / 2

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_t = alpha_t^2, float64, shape (T,)."""
        return self.alpha**2

    @property
    def betas(self) -> Tensor:
        """beta_t = 1 - abar_t / abar_{t-1}, float64, shape (T,). Of ``alpha^2 + sigma^2 = 1``."""
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        return 1 - self.alphas_cumprod / previous

    def at(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha_t, sigma_t)``, in the dtype and on the device of ``like``.

        Args:
            t: timestep, or timesteps of shape (B,).
            like: a tensor of shape (B, ...); the result broadcasts against it.
        """
        index = torch.as_tensor(t, dtype=torch.long).cpu()
        view = (-1,) + (1,) * (like.ndim - 1)
        return (
            self.alpha[index].to(like.device, like.dtype).reshape(view),
            self.sigma[index].to(like.device, like.dtype).reshape(view),
        )

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """``x_t = alpha_t x_0 + sigma_t noise``; shapes (B, ...)."""
        alpha, sigma = self.at(t, x_0)
        return alpha * x_0 + sigma * noise
