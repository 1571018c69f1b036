"""How many images a command generates at a time where its user does not say: on a GPU, what fits into its memory."""

import torch
from jsonargparse import Namespace
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm.commands.options import Conditions
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import ImageGenerator
from lightning_ddpm.models.step_plan import HALF, Settings, find_largest_batch
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line

DEFAULT = 64
"""Number of images on a CPU, where more at a time take as long each."""
LARGEST = 1024
"""More images at a time do not keep a GPU busier."""
SHARE = 0.8
"""Share of the free memory that the network may take: the samplers keep a few images, too."""


def choose_batch_size(model: ImageGenerator, n: int, conditions: Conditions, options: Namespace, fabric: Fabric) -> int:
    """Return --batch_size, or a size that fits into the memory of every rank and gives all ranks as many batches.

    Args:
        model: not yet on its device; the memory of one that is no DDPM is not predicted.
        n: number of images, over all ranks.
        conditions: of the images; guidance evaluates the network more than once for each.
        options: of the command.
        fabric: every rank must call this.
    """
    if options.batch_size is not None:
        return int(options.batch_size)
    share, free = -(-n // fabric.world_size), get_free_memory(fabric.device)
    if free is None or share <= DEFAULT or not isinstance(model, DDPM):  # a prediction takes a few seconds
        return DEFAULT
    copies = conditions.guidance.nfe if conditions.guidance else 1
    try:
        fits = find_largest_batch(model, Settings(HALF.get(options.precision)), free * SHARE, LARGEST, copies)
    except Exception as error:  # of a user's network, which may compute with values or depend on the batch
        if fabric.global_rank == 0:
            report(f"the memory of the network cannot be predicted: {first_line(error)}; {DEFAULT} images at a time")
        fits = DEFAULT
    smallest = fabric.all_reduce(torch.tensor(fits, device=fabric.device), reduce_op="min")
    assert isinstance(smallest, Tensor)
    return -(-share // -(-share // int(smallest)))


def get_free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, ``None`` for another device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
