"""Names of devices."""

import torch


def name_device(device: torch.device) -> str:
    """Return the model of a GPU, or the kind of another device: sums, and so roundings, depend on it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
