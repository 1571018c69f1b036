"""Contents of checkpoints."""

from typing import Any

import torch


def content(step: int) -> dict[str, Any]:
    """Return a checkpoint whose weights all equal its step."""
    return {
        "state_dict": {"weight": torch.full((300, 300), float(step)), "half": torch.ones(3, dtype=torch.bfloat16)},
        "hyper_parameters": {"_class_path": "lightning_ddpm.models.ddpm.DDPM", "betas": (0.9, 0.999), "nothing": None},
        "global_step": step,
    }
