"""The configurations that make a model a pipeline of diffusers, for ``export`` and for the model card of a release."""

from typing import Any, NamedTuple

from lightning_ddpm.diffusion import ContinuousPath, NoClipping, ReverseVariance
from lightning_ddpm.diffusion.clipping import ClipToRange
from lightning_ddpm.interop.diffusers import continuous, scheduler, unet
from lightning_ddpm.interop.diffusers.settings import make_model_index
from lightning_ddpm.models.checkpoint import MAX_LENGTH
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import require_uint8
from lightning_ddpm.utils.errors import UserError


class PipelineConfigs(NamedTuple):
    """The content of three files, and what the weights depend on.

    Attributes:
        unet: config.json of a UNet2DModel.
        scheduler: scheduler_config.json.
        pipeline: model_index.json.
        time_offset: what the scheduler's time is below this package's t.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    pipeline: dict[str, Any]
    time_offset: int


def make_pipeline_configs(model: DDPM, variance: ReverseVariance | None = None) -> PipelineConfigs:
    """Return the configurations of the pipeline that samples from the model.

    On a noise schedule it samples like ``Ancestral(variance)`` over all T steps; on a continuous path as
    :func:`lightning_ddpm.interop.diffusers.continuous.make_scheduler_config` states.

    Args:
        model: the model.
        variance: of the reverse steps; ``None`` for that of the model's own sampler.

    Raises:
        UserError: diffusers has no such pipeline.
    """
    require_uint8(model, "export to diffusers", "give --format release")
    if not isinstance(model.clipping, ClipToRange | NoClipping | None):
        raise UserError(
            f"export writes schedulers that clip to the range, or not at all, and the checkpoint has {model.clipping}; "
            "give --format release"
        )
    clips = not isinstance(model.clipping, NoClipping)
    unet_config = unet.make_unet_config(model.network)
    outputs = unet_config["out_channels"] // unet_config["in_channels"]
    if isinstance(model.schedule, ContinuousPath):
        if variance is not None:
            raise UserError(
                f"--variance is of a DDPMScheduler's steps, and the checkpoint has {type(model.schedule).__name__}, "
                "whose scheduler has none; leave it out"
            )
        config = continuous.make_scheduler_config(model.schedule, model.parameterization, model.sampler, clips)
        kind = config["_class_name"]
        continuous.check_outputs(kind, outputs)
        return PipelineConfigs(unet_config, config, make_model_index(continuous.PIPELINES[kind], kind), 0)
    variance = variance or scheduler.choose_variance(model.sampler, outputs)
    config = scheduler.make_scheduler_config(model.schedule, model.parameterization, variance, clips)
    if len(config["trained_betas"] or ()) > MAX_LENGTH:
        raise UserError(
            f"diffusers has no {type(model.schedule).__name__}, and {model.schedule.T:,} betas are more than a list "
            f"may have here ({MAX_LENGTH:,}); only Linear, Quadratic and Cosine schedules can have more steps"
        )
    scheduler.check_outputs(config["variance_type"], outputs)
    return PipelineConfigs(unet_config, config, make_model_index("DDPMPipeline", "DDPMScheduler"), 1)
