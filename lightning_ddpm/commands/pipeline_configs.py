"""The configurations that make a model a pipeline of diffusers, for ``export`` and for the model card of a release."""

from typing import Any, NamedTuple

from lightning_ddpm.diffusion import ReverseVariance
from lightning_ddpm.interop.diffusers import scheduler, unet
from lightning_ddpm.models.checkpoint import MAX_LENGTH
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import require_uint8
from lightning_ddpm.utils.errors import UserError


class PipelineConfigs(NamedTuple):
    """The content of two files.

    Attributes:
        unet: config.json of a UNet2DModel.
        scheduler: scheduler_config.json of a DDPMScheduler.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]


def make_pipeline_configs(model: DDPM, variance: ReverseVariance | None = None) -> PipelineConfigs:
    """Return the configurations of the pipeline that samples like ``Ancestral(variance)`` over all T steps.

    Args:
        model: the model.
        variance: of the reverse steps; ``None`` for that of the model's own sampler.

    Raises:
        UserError: diffusers has no such pipeline.
    """
    require_uint8(model, "export to diffusers", "give --format release")
    if model.clipping:
        raise UserError(
            f"export writes schedulers that clip to the range, and the checkpoint has {model.clipping}; give "
            "--format release"
        )
    unet_config = unet.make_unet_config(model.network)
    outputs = unet_config["out_channels"] // unet_config["in_channels"]
    variance = variance or scheduler.choose_variance(model.sampler, outputs)
    scheduler_config = scheduler.make_scheduler_config(model.schedule, model.parameterization, variance)
    if len(scheduler_config["trained_betas"] or ()) > MAX_LENGTH:
        raise UserError(
            f"diffusers has no {type(model.schedule).__name__}, and {model.schedule.T:,} betas are more than a list "
            f"may have here ({MAX_LENGTH:,}); only Linear, Quadratic and Cosine schedules can have more steps"
        )
    scheduler.check_outputs(scheduler_config["variance_type"], outputs)
    return PipelineConfigs(unet_config, scheduler_config)
