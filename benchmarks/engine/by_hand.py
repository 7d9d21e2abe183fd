"""Training steps in plain PyTorch, of the same bounds as the stories, to compare `fit` with.

The layers and parameters are those of the stories: affine units, full covariances Σ_k, one scale of
the decoder for each column. Densities are written out, without distributions.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def mlp(*sizes: int) -> nn.Sequential:
    """A perceptron with ReLU between its layers."""
    layers: list[nn.Module] = []
    for one, other in pairwise(sizes):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DMVAE(nn.Module):
    """A discrete mixture variational autoencoder of x, shape (N, D)."""

    def __init__(self, x_dim: int, z_dim: int, num_components: int, hidden: tuple[int, ...]):
        super().__init__()
        self.encoder = mlp(x_dim, *hidden, 2 * z_dim)
        self.decoder = mlp(z_dim, *reversed(hidden), x_dim)
        self.log_sigma = nn.Parameter(torch.zeros(x_dim))
        self.gate = mlp(x_dim, *hidden, num_components)
        self.loc = nn.Parameter(torch.randn(num_components, z_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, z_dim))
        self.lower = nn.Parameter(torch.zeros(num_components, z_dim, z_dim))

    def codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p(x|z) − log q(z), shape (N,), and the log-densities of z, shape (N, K)."""
        mean, log_std = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean)
        z = mean + log_std.exp() * noise
        log_q = (-0.5 * noise.square() - log_std - HALF_LOG_TWO_PI).sum(-1)
        error = (x - self.decoder(z)) * torch.exp(-self.log_sigma)
        log_p = (-0.5 * error.square() - self.log_sigma - HALF_LOG_TWO_PI).sum(-1)
        scale_tril = self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        difference = (z.unsqueeze(0) - self.loc.unsqueeze(1)).mT  # (K, L, N)
        whitened = torch.linalg.solve_triangular(scale_tril, difference, upper=False)
        log_prior = -0.5 * whitened.square().sum(1).T - self.log_scale.sum(-1)
        return log_p - log_q, log_prior - z.shape[-1] * HALF_LOG_TWO_PI

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The negative bound, summed over rows."""
        rows, log_prior = self.codes(x)
        log_q = self.gate(x).log_softmax(-1)
        weights = log_prior - math.log(log_q.shape[-1]) - log_q
        return -(rows + (log_q.exp() * weights).sum(-1)).sum()


class DVMoE(DMVAE):
    """A DMVAE with affine normal experts of y, shape (N, M)."""

    def __init__(
        self, x_dim: int, y_dim: int, z_dim: int, num_components: int, hidden: tuple[int, ...]
    ):
        super().__init__(x_dim, z_dim, num_components, hidden)
        self.weight = nn.Parameter(torch.zeros(num_components, y_dim, x_dim))
        self.bias = nn.Parameter(torch.randn(num_components, y_dim))
        self.log_noise = nn.Parameter(torch.zeros(num_components, y_dim))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The negative bound, summed over rows."""
        rows, log_prior = self.codes(x)
        mean = torch.einsum("nd,kmd->nkm", x, self.weight) + self.bias
        error = (y.unsqueeze(1) - mean) * torch.exp(-self.log_noise)
        log_y = (-0.5 * error.square() - self.log_noise - HALF_LOG_TWO_PI).sum(-1)
        joint = self.gate(x).log_softmax(-1) + log_y
        target = joint.logsumexp(-1, keepdim=True)
        log_q = joint - target
        weights = log_prior - math.log(log_q.shape[-1]) - log_q
        return -(rows + target.squeeze(-1) + (log_q.exp() * weights).sum(-1)).sum()


def step(story: nn.Module, columns: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """A training step on a random minibatch of 256 rows, with Adam."""
    optimizer = torch.optim.Adam(story.parameters(), lr=1e-3, fused=True)

    def take() -> None:
        rows = torch.randint(len(columns[0]), (256,), device=columns[0].device)
        loss = story(*(column[rows] for column in columns)) / 256
        loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError("expected a finite loss")
        optimizer.step()
        optimizer.zero_grad()

    return take
