"""A model as Hugging Face's diffusers keeps it: a UNet2DModel and a DDPMScheduler, each a JSON file, and named weights.

Pure functions between those and ours, without diffusers itself; its models/unets/unet_2d.py and
schedulers/scheduling_ddpm.py (github.com/huggingface/diffusers, 0.32 and newer) say what a setting means.
"""

from lightning_ddpm.interop.diffusers.scheduler import (
    VARIANCES,
    check_outputs,
    exported_variance,
    scheduler_arguments,
    scheduler_config,
)
from lightning_ddpm.interop.diffusers.settings import VERSION
from lightning_ddpm.interop.diffusers.unet import load_weights, unet_arguments, unet_config, unet_names, unet_weights

MODEL_INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
"""model_index.json: which pipeline the folder is, and of which classes its parts are."""

__all__ = [
    "MODEL_INDEX",
    "VARIANCES",
    "check_outputs",
    "exported_variance",
    "load_weights",
    "scheduler_arguments",
    "scheduler_config",
    "unet_arguments",
    "unet_config",
    "unet_names",
    "unet_weights",
]
