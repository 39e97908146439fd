"""What PyTorch has as a default, put back."""

import torch


def no_default_device() -> None:
    """Undo `torch.set_default_device`; after its own way, None, torch 2.6 can no longer tell what the default is."""
    torch.set_default_device(None)
    vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)
