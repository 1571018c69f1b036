"""Conversion to and from Hugging Face's diffusers: the JSON files of a UNet2DModel and a DDPMScheduler, and weights.

The functions do not need diffusers itself. Its models/unets/unet_2d.py and schedulers/scheduling_ddpm.py
(github.com/huggingface/diffusers, 0.32 and newer) define what the settings mean.
"""

from lightning_ddpm.interop.diffusers.scheduler import (
    VARIANCES,
    check_outputs,
    choose_variance,
    make_scheduler_config,
    parse_scheduler_config,
)
from lightning_ddpm.interop.diffusers.settings import VERSION
from lightning_ddpm.interop.diffusers.unet import (
    export_weights,
    load_weights,
    make_unet_config,
    map_weight_names,
    parse_unet_config,
)

MODEL_INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
"""Content of model_index.json: the class of the pipeline and of its parts."""

__all__ = [
    "MODEL_INDEX",
    "VARIANCES",
    "check_outputs",
    "choose_variance",
    "export_weights",
    "load_weights",
    "make_scheduler_config",
    "make_unet_config",
    "map_weight_names",
    "parse_scheduler_config",
    "parse_unet_config",
]
