"""A model with the same architecture that has learned nothing: the control that every score of a trained model stands beside."""

import torch
from torch import nn


def randomise(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Put the entries of every parameter in a random order, in place.

    Each tensor keeps its own distribution, so activations keep a sane size in any architecture, and nothing of what was learned is left in where
    the numbers stand. Buffers (position indices, running statistics) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.data_ptr() in done:
                continue
            done.add(parameter.data_ptr())
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return model
