"""Conversion between schedule, parameterization and sampler and diffusers' DDPMScheduler, whose t runs 0..T-1.

Schedulers of other paths are in :mod:`lightning_ddpm.interop.diffusers.continuous`.
"""

from collections.abc import Mapping
from typing import Any

from lightning_ddpm import diffusion
from lightning_ddpm.diffusion import FixedLarge, FixedSmall, LearnedRange, NoClipping
from lightning_ddpm.interop.diffusers import continuous
from lightning_ddpm.interop.diffusers.settings import SAMPLER_KEY, VERSION, Config, Settings, describe_object
from lightning_ddpm.utils.errors import UserError

SCHEDULES: dict[str, type[diffusion.NoiseSchedule]] = {
    "linear": diffusion.Linear,
    "scaled_linear": diffusion.Quadratic,
    "sigmoid": diffusion.Sigmoid,
    "squaredcos_cap_v2": diffusion.Cosine,
}
PREDICTION_TYPES = {"epsilon": diffusion.Epsilon, "sample": diffusion.X0, "v_prediction": diffusion.Velocity}
Variances = dict[str, type[diffusion.ReverseVariance]]
VARIANCES: Variances = {"fixed_small": FixedSmall, "fixed_large": FixedLarge, "learned_range": LearnedRange}

SCHEDULER_SETTINGS: Settings = {
    "clip_sample": (True, (True, False)),
    "clip_sample_range": (1.0, (1.0,)),
    "predict_epsilon": (True, (True,)),
    "rescale_betas_zero_snr": (False, (False,)),
    "set_alpha_to_one": (True, (True,)),
    "thresholding": (False, (False,)),
}
SCHEDULER_READ = {
    *("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type"),
    *("trained_betas", "variance_type"),
    # These concern sampling with fewer than T steps, and thresholding; they have no effect here.
    *("timestep_spacing", "steps_offset", "dynamic_thresholding_ratio", "sample_max_value", "tensor_format"),
}


def make_scheduler_config(
    path: diffusion.GaussianPath,
    parameterization: diffusion.Parameterization,
    variance: diffusion.ReverseVariance,
    clips: bool = True,
) -> dict[str, Any]:
    """Return the scheduler_config.json of the DDPMScheduler that samples like ``Ancestral(variance)`` over all T steps.

    Args:
        path, parameterization, variance: of the model.
        clips: whether predicted images are clipped to the range.

    Raises:
        UserError: diffusers has no such schedule, parameterization or variance.
    """
    schedule = diffusion.require_chain(path, "diffusers' DDPMScheduler")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.T,
        **_make_beta_config(schedule),
        "variance_type": _find_name("variances", variance, VARIANCES),
        "prediction_type": _find_name("parameterizations", parameterization, PREDICTION_TYPES),
        "clip_sample": clips,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "linspace",  # for fewer than T steps: the nearest to uniform_spacing
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def _find_name(what: str, given: object, known: Mapping[str, type]) -> str:
    for name, kind in known.items():
        if type(given) is kind:
            return name
    raise UserError(
        f"diffusers' DDPMScheduler has the {what} {', '.join(kind.__name__ for kind in known.values())} only, "
        f"and the checkpoint has {type(given).__name__}"
    )


def _make_beta_config(schedule: diffusion.NoiseSchedule) -> dict[str, Any]:
    if type(schedule) is diffusion.Linear or type(schedule) is diffusion.Quadratic:
        name = "linear" if type(schedule) is diffusion.Linear else "scaled_linear"
        ends = {"beta_start": schedule.beta_min, "beta_end": schedule.beta_max}
        return {"beta_schedule": name, **ends, "trained_betas": None}
    if type(schedule) is diffusion.Cosine and schedule.offset == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    # diffusers' DDIMScheduler has no ``sigmoid``, but every scheduler accepts a list of betas.
    return {"beta_schedule": "linear", "trained_betas": schedule.beta[1:].tolist()}


def choose_variance(sampler: diffusion.Sampler, outputs: int) -> diffusion.ReverseVariance:
    """Return the reverse variance for a DDPMScheduler: the sampler's own, or beta~ for DDIM, which has none.

    Args:
        sampler: the checkpoint's sampler.
        outputs: output channels of the network divided by image channels; 2 requires a learned variance.

    Raises:
        UserError: the sampler is neither Ancestral nor DDIM.
    """
    if type(sampler) is diffusion.DDIM:
        return FixedSmall() if outputs == 1 else LearnedRange()
    if type(sampler) is diffusion.Ancestral:
        return sampler.variance
    raise UserError(
        f"diffusers' DDPMScheduler has Ancestral sampling only, and the checkpoint's sampler is {sampler}; give "
        "--variance fixed_small (or fixed_large, or learned_range) to export Ancestral in its place"
    )


def check_outputs(variance: str, outputs: int) -> None:
    """Check that the network has output channels for a learned variance if and only if the scheduler reads one.

    Raises:
        UserError: ``variance_type`` and the number of output channels do not match.
    """
    if outputs not in (1, 2) or (variance == "learned_range") != (outputs == 2):
        raise UserError(
            f"the network's output has {outputs} times the images' channels and the variance is {variance}; diffusers "
            "expects 2 times with learned_range and 1 with any other variance"
        )


def parse_scheduler_config(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """Convert a scheduler's configuration to a model's ``schedule``, ``sampler``, ``parameterization``, ``clipping``.

    Each is described by class_path and init_args. diffusers' configuration holds neither a number of sampling steps nor
    DDIM's eta, so the sampler makes all T steps unless this package exported the folder and wrote its sampler there.

    Args:
        config: scheduler_config.json of a DDPMScheduler, a DDIMScheduler, or a scheduler of continuous paths.
        outputs: output channels of the network divided by image channels.

    Raises:
        UserError: a setting is not supported; the message has its name, its value and the supported values.
    """
    settings = Config(config, "scheduler_config.json")
    settings.check_class(["DDPMScheduler", "DDIMScheduler", *continuous.PIPELINES])
    if config["_class_name"] in continuous.PIPELINES:
        return continuous.parse_scheduler_config(settings, outputs)
    settings.check_settings(SCHEDULER_SETTINGS, SCHEDULER_READ)
    parameterization = describe_object(settings.read_choice("prediction_type", "epsilon", PREDICTION_TYPES))
    if config["_class_name"] == "DDIMScheduler":
        sampler = describe_object(diffusion.DDIM, steps=None)
        if outputs == 2:
            raise UserError(f"{settings.where} is of a DDIMScheduler, which cannot read the network's learned variance")
    else:
        kinds = VARIANCES | {"fixed_small_log": FixedSmall}
        variance = settings.read_choice("variance_type", "fixed_small", kinds)
        check_outputs(config.get("variance_type", "fixed_small"), outputs)
        sampler = describe_object(diffusion.Ancestral, variance=describe_object(variance), steps=None)
    sampler = config.get(SAMPLER_KEY) or sampler
    parts = {"schedule": _parse_schedule(settings), "sampler": sampler, "parameterization": parameterization}
    return parts if config.get("clip_sample", True) else parts | {"clipping": describe_object(NoClipping)}


def _parse_schedule(settings: Config) -> dict[str, Any]:
    steps = settings.read_positive_int("num_train_timesteps", 1000)
    if settings.values.get("trained_betas") is not None:
        betas = [float(each) for each in settings.read_list("trained_betas", (int, float))]
        settings.check(steps == len(betas), "num_train_timesteps", steps, f"{len(betas)}, the number of trained_betas")
        return describe_object(diffusion.ExplicitBetas, betas=betas)
    kind = settings.read_choice("beta_schedule", "linear", SCHEDULES)
    if kind is diffusion.Cosine:
        return describe_object(kind, steps=steps)
    ends = {"beta_min": ("beta_start", 1e-4), "beta_max": ("beta_end", 0.02)}
    return describe_object(kind, steps=steps, **{ours: settings.read_number(*each) for ours, each in ends.items()})
