"""Names of devices."""

import torch


def name_device(device: torch.device) -> str:
    """Return the model of a GPU, or the kind of another device.

    torch's random numbers on a GPU depend on its model: a large tensor is filled by as many threads as it has room for.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
