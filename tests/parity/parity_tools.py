"""What the tests of parity share: networks of diffusers' with random weights, and their folders.

torch and diffusers are no dependencies: `make test-parity` installs them.
"""

from __future__ import annotations

import numpy as np

NEEDED = "compares with torch and diffusers, which are not installed here: run `make test-parity`"

# 8 x 8 pixels and one level with attention: for whole walks.
SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def random_network(config: dict, scale: float = 1.0, seed: int = 0):
    """A `UNet2DModel` none of whose weights is at its initial value; outputs are of order
    `scale`.
    """
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    network = UNet2DModel(**config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
            if name.startswith("conv_out"):
                weight.mul_(scale)
    return network


def saved(network, folder, scheduler=None, pipeline: str = "DDPMPipeline"):
    """Write a pipeline as diffusers does, and return its folder."""
    import diffusers

    scheduler = diffusers.DDPMScheduler() if scheduler is None else scheduler
    getattr(diffusers, pipeline)(network, scheduler).save_pretrained(folder)
    return folder


def predicted(network, images, times, labels=None) -> np.ndarray:
    """What a network of torch's says of images (batch, height, width, channels)."""
    import torch

    with torch.no_grad():
        given = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))
        labels = None if labels is None else torch.tensor(labels)
        return network(given, torch.tensor(times), labels).sample.numpy().transpose(0, 2, 3, 1)
