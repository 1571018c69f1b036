"""Our schedule, prediction and sampler, and diffusers' DDPMScheduler; its steps run 0..T-1 where ours run 1..T."""

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
    Settings,
    check,
    check_class,
    list_of,
    number,
    one_of,
    unsupported,
    whole,
)
from lightning_ddpm.utils.errors import UserError

PREDICTIONS: dict[type[Parameterization], str] = {Epsilon: "epsilon", X0: "sample", Velocity: "v_prediction"}
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
# Those of the last two lines say which steps fewer than T would visit, and how thresholding works: not looked at here.
SCHEDULER_READ = {
    *("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type", "trained_betas"),
    "variance_type",
    *("timestep_spacing", "steps_offset"),
    *("dynamic_thresholding_ratio", "sample_max_value", "tensor_format"),
}


def scheduler_config(
    schedule: NoiseSchedule, prediction: Parameterization, variance: ReverseVariance
) -> dict[str, Any]:
    """scheduler_config.json of the DDPMScheduler that draws as ``Ancestral(variance)`` does over all T steps.

    Raises:
        UserError: diffusers does not have this prediction or this variance.
    """
    for what, each, known in (("predictions", prediction, PREDICTIONS), ("variances", variance, VARIANCES)):
        if type(each) not in known:
            raise UserError(
                f"of {what}, diffusers' DDPMScheduler can express "
                f"{', '.join(kind.__name__ for kind in known)}, and the checkpoint has {type(each).__name__}"
            )
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.T,
        **_beta_config(schedule),
        "variance_type": VARIANCES[type(variance)],
        "prediction_type": PREDICTIONS[type(prediction)],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "linspace",  # of fewer than T: the nearest to spacing.uniform
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def _beta_config(schedule: NoiseSchedule) -> dict[str, Any]:
    if isinstance(schedule, Linear | Quadratic) and type(schedule) in (Linear, Quadratic):
        name = "linear" if isinstance(schedule, Linear) else "scaled_linear"
        ends = {"beta_start": schedule.beta_min, "beta_end": schedule.beta_max}
        return {"beta_schedule": name, **ends, "trained_betas": None}
    if type(schedule) is Cosine and schedule.offset == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    # ``sigmoid`` is known to diffusers' DDPMScheduler and not to its DDIMScheduler; a list is known to all.
    return {"beta_schedule": "linear", "trained_betas": schedule.beta[1:].tolist()}


def exported_variance(sampler: Sampler, outputs: int) -> ReverseVariance:
    """The variance that stands for ``sampler`` in a DDPMScheduler; for DDIM, which has none there, beta~.

    Args:
        sampler: the checkpoint's.
        outputs: images' worth of channels that the network answers with; with 2, DDPMScheduler must learn its variance.

    Raises:
        UserError: a sampler of another class.
    """
    if type(sampler) is DDIM:
        return FixedSmall() if outputs == 1 else LearnedRange()
    if type(sampler) is Ancestral:
        return sampler.variance
    raise UserError(
        f"diffusers' DDPMScheduler can express Ancestral sampling, and the checkpoint's sampler is {sampler}; give "
        "--variance fixed_small (or fixed_large, or learned_range) to export Ancestral in its place"
    )


def check_outputs(variance: str, outputs: int) -> None:
    """Refuse a network with channels for a variance that its scheduler does not read, and the reverse.

    Raises:
        UserError: ``variance_type`` and the number of output channels do not go together.
    """
    if (variance == "learned_range") != (outputs == 2):
        raise UserError(
            f"the network answers with {outputs} times the images' channels and the variance is {variance}; diffusers "
            "reads 2 times with learned_range and 1 with any other"
        )


def scheduler_arguments(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """Which ``schedule``, ``sampler`` and ``prediction`` a scheduler's configuration means: class_path and init_args.

    How many steps a chain has, and a DDIM's eta, are no part of diffusers' configuration: the sampler visits all T.

    Args:
        config: scheduler_config.json of a DDPMScheduler or a DDIMScheduler.
        outputs: images' worth of channels that the network answers with.

    Raises:
        UserError: naming the setting that is not supported here, its value, and what is.
    """
    where = "scheduler_config.json"
    check_class(config, ("DDPMScheduler", "DDIMScheduler"), where)
    check(config, SCHEDULER_SETTINGS, SCHEDULER_READ, where)
    predictions = {name: kind for kind, name in PREDICTIONS.items()}
    prediction = one_of(config, "prediction_type", "epsilon", predictions, where)
    if config["_class_name"] == "DDIMScheduler":
        sampler = _object(DDIM, steps=None)
        if outputs == 2:
            raise UserError(f"{where} is a DDIMScheduler's, which cannot read the network's learned variance")
    else:
        kinds = {name: kind for kind, name in VARIANCES.items()} | {"fixed_small_log": FixedSmall}
        variance = one_of(config, "variance_type", "fixed_small", kinds, where)
        check_outputs(VARIANCES[variance], outputs)
        sampler = _object(Ancestral, variance=_object(variance), steps=None)
    return {"schedule": _schedule(config, where), "sampler": sampler, "parameterization": _object(prediction)}


def _schedule(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    steps = whole(config, "num_train_timesteps", 1000, where)
    if config.get("trained_betas") is not None:
        betas = [float(each) for each in list_of(config, "trained_betas", (int, float), where)]
        if len(betas) != steps:
            raise unsupported("num_train_timesteps", steps, f"{len(betas)}, the number of trained_betas", where)
        return _object(ExplicitBetas, betas=betas)
    known = {"linear": Linear, "scaled_linear": Quadratic, "sigmoid": Sigmoid, "squaredcos_cap_v2": Cosine}
    kind = one_of(config, "beta_schedule", "linear", known, where)
    if kind is Cosine:
        return _object(Cosine, steps=steps)
    ends = {"beta_min": ("beta_start", 1e-4), "beta_max": ("beta_end", 0.02)}
    return _object(kind, steps=steps, **{ours: number(config, *each, where) for ours, each in ends.items()})


def _object(kind: type, **arguments: Any) -> dict[str, Any]:
    """How a checkpoint says that there is to be a ``kind(**arguments)``."""
    class_path = f"lightning_ddpm.diffusion.{kind.__name__}"
    return {"class_path": class_path, "init_args": arguments} if arguments else {"class_path": class_path}
