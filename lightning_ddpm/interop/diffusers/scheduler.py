"""Conversion between schedule, parameterization and sampler and diffusers' DDPMScheduler, whose t runs 0..T-1."""

from collections.abc import Mapping
from typing import Any

from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    Ancestral,
    Cosine,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoiseSchedule,
    Parameterization,
    Quadratic,
    ReverseVariance,
    Sampler,
    Sigmoid,
    Velocity,
)
from lightning_ddpm.interop.diffusers.settings import (
    VERSION,
    SettingError,
    Settings,
    check_class,
    check_settings,
    read_choice,
    read_list,
    read_number,
    read_positive_int,
)
from lightning_ddpm.utils.errors import UserError

PREDICTION_TYPES: dict[type[Parameterization], str] = {Epsilon: "epsilon", X0: "sample", Velocity: "v_prediction"}
VARIANCES: dict[type[ReverseVariance], str] = {
    FixedSmall: "fixed_small",
    FixedLarge: "fixed_large",
    LearnedRange: "learned_range",
}

SCHEDULER_SETTINGS: Settings = {
    "clip_sample": (True, (True,)),
    "clip_sample_range": (1.0, (1.0,)),
    "predict_epsilon": (True, (True,)),
    "rescale_betas_zero_snr": (False, (False,)),
    "set_alpha_to_one": (True, (True,)),
    "thresholding": (False, (False,)),
}
# The last two lines concern sampling with fewer than T steps, and thresholding; they have no effect here.
SCHEDULER_READ = {
    *("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type", "trained_betas"),
    "variance_type",
    *("timestep_spacing", "steps_offset"),
    *("dynamic_thresholding_ratio", "sample_max_value", "tensor_format"),
}


def make_scheduler_config(
    schedule: NoiseSchedule, parameterization: Parameterization, variance: ReverseVariance
) -> dict[str, Any]:
    """Return the scheduler_config.json of the DDPMScheduler that samples like ``Ancestral(variance)`` over all T steps.

    Raises:
        UserError: diffusers has no such parameterization or variance.
    """
    parts = (("parameterizations", parameterization, PREDICTION_TYPES), ("variances", variance, VARIANCES))
    for what, each, known in parts:
        if type(each) not in known:
            raise UserError(
                f"diffusers' DDPMScheduler has the {what} {', '.join(kind.__name__ for kind in known)} only, "
                f"and the checkpoint has {type(each).__name__}"
            )
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.T,
        **_make_beta_config(schedule),
        "variance_type": VARIANCES[type(variance)],
        "prediction_type": PREDICTION_TYPES[type(parameterization)],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "linspace",  # for fewer than T steps: the nearest to uniform_spacing
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def _make_beta_config(schedule: NoiseSchedule) -> dict[str, Any]:
    if isinstance(schedule, Linear | Quadratic) and type(schedule) in (Linear, Quadratic):
        name = "linear" if isinstance(schedule, Linear) else "scaled_linear"
        ends = {"beta_start": schedule.beta_min, "beta_end": schedule.beta_max}
        return {"beta_schedule": name, **ends, "trained_betas": None}
    if type(schedule) is Cosine and schedule.offset == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    # diffusers' DDIMScheduler has no ``sigmoid``, but every scheduler accepts a list of betas.
    return {"beta_schedule": "linear", "trained_betas": schedule.beta[1:].tolist()}


def choose_variance(sampler: Sampler, outputs: int) -> ReverseVariance:
    """Return the reverse variance for a DDPMScheduler: the sampler's own, or beta~ for DDIM, which has none.

    Args:
        sampler: the checkpoint's sampler.
        outputs: output channels of the network divided by image channels; 2 requires a learned variance.

    Raises:
        UserError: the sampler is neither Ancestral nor DDIM.
    """
    if type(sampler) is DDIM:
        return FixedSmall() if outputs == 1 else LearnedRange()
    if type(sampler) is Ancestral:
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
    if (variance == "learned_range") != (outputs == 2):
        raise UserError(
            f"the network's output has {outputs} times the images' channels and the variance is {variance}; diffusers "
            "expects 2 times with learned_range and 1 with any other variance"
        )


def parse_scheduler_config(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """Convert a scheduler's configuration to a model's ``schedule``, ``sampler`` and ``parameterization``.

    Each is described by class_path and init_args. diffusers' configuration holds neither a number of sampling steps nor
    DDIM's eta, so the sampler makes all T steps.

    Args:
        config: scheduler_config.json of a DDPMScheduler or a DDIMScheduler.
        outputs: output channels of the network divided by image channels.

    Raises:
        UserError: a setting is not supported; the message has its name, its value and the supported values.
    """
    where = "scheduler_config.json"
    check_class(config, ("DDPMScheduler", "DDIMScheduler"), where)
    check_settings(config, SCHEDULER_SETTINGS, SCHEDULER_READ, where)
    types = {name: kind for kind, name in PREDICTION_TYPES.items()}
    parameterization = read_choice(config, "prediction_type", "epsilon", types, where)
    if config["_class_name"] == "DDIMScheduler":
        sampler = _describe_object(DDIM, steps=None)
        if outputs == 2:
            raise UserError(f"{where} is of a DDIMScheduler, which cannot read the network's learned variance")
    else:
        kinds = {name: kind for kind, name in VARIANCES.items()} | {"fixed_small_log": FixedSmall}
        variance = read_choice(config, "variance_type", "fixed_small", kinds, where)
        check_outputs(VARIANCES[variance], outputs)
        sampler = _describe_object(Ancestral, variance=_describe_object(variance), steps=None)
    return {
        "schedule": _parse_schedule(config, where),
        "sampler": sampler,
        "parameterization": _describe_object(parameterization),
    }


def _parse_schedule(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    steps = read_positive_int(config, "num_train_timesteps", 1000, where)
    if config.get("trained_betas") is not None:
        betas = [float(each) for each in read_list(config, "trained_betas", (int, float), where)]
        if len(betas) != steps:
            raise SettingError("num_train_timesteps", steps, f"{len(betas)}, the number of trained_betas", where)
        return _describe_object(ExplicitBetas, betas=betas)
    known = {"linear": Linear, "scaled_linear": Quadratic, "sigmoid": Sigmoid, "squaredcos_cap_v2": Cosine}
    kind = read_choice(config, "beta_schedule", "linear", known, where)
    if kind is Cosine:
        return _describe_object(Cosine, steps=steps)
    ends = {"beta_min": ("beta_start", 1e-4), "beta_max": ("beta_end", 0.02)}
    settings = {ours: read_number(config, *each, where) for ours, each in ends.items()}
    return _describe_object(kind, steps=steps, **settings)


def _describe_object(kind: type, **arguments: Any) -> dict[str, Any]:
    """Return the description of ``kind(**arguments)`` in a checkpoint."""
    class_path = f"lightning_ddpm.diffusion.{kind.__name__}"
    return {"class_path": class_path, "init_args": arguments} if arguments else {"class_path": class_path}
