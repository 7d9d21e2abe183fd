"""Synthetic data: spirals."""

import numpy as np
import torch

from pyro_moe.rows import Rows


def spiral(
    *, num_components: int = 5, train_rows: int = 5000, test_rows: int = 1000, seed: int = 0
) -> tuple[Rows, Rows]:
    r"""Interleaved spiral arms in the plane, one for each component.

    .. math::
        x = r (\sin a, \cos a), \quad a = a_0 + 0.05\,\epsilon, \quad \epsilon \sim N(0, 1)

    On arm j the radius r has equally spaced values from 2.5 to 10, and the angle :math:`a_0`, in
    radians, has equally spaced values from 1.25 j to 1.25 (j + 1).

    Args:
        num_components: K, the number of arms.
        train_rows: Training rows of each arm.
        test_rows: Test rows of each arm, with independent noise.
        seed: Seed of the noise.

    Returns:
        Training and test rows, ordered by arm: x of shape (K * rows, 2), labels the arm.

    Raises:
        ValueError: If one of the three numbers is below 1.

    Source:
        Singh and Panda, "Mixture of experts using discrete VAE", section 8.1.2.

    Example:
        >>> train, test = spiral(train_rows=100, test_rows=20)
        >>> train.x.shape, test.labels.unique()
        (torch.Size([500, 2]), tensor([0, 1, 2, 3, 4]))
    """
    counts = {"num_components": num_components, "train_rows": train_rows, "test_rows": test_rows}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} of at least 1; got {count}")
    train_noise, test_noise = np.random.default_rng(seed).spawn(2)
    return (
        _spiral_rows(num_components, train_rows, train_noise),
        _spiral_rows(num_components, test_rows, test_noise),
    )


def _spiral_rows(num_components: int, num_rows: int, noise: np.random.Generator) -> Rows:
    arm = np.arange(num_components)
    radius = np.linspace(2.5, 10, num_rows)
    angle = np.linspace(1.25 * arm, 1.25 * (arm + 1), num_rows, axis=1)
    angle += 0.05 * noise.standard_normal(angle.shape)
    x = np.stack((radius * np.sin(angle), radius * np.cos(angle)), axis=-1).reshape(-1, 2)
    return Rows(
        x=torch.from_numpy(x.astype(np.float32)),
        labels=torch.from_numpy(arm.repeat(num_rows).astype(np.int64)),
    )
