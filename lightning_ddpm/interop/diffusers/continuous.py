"""Conversion between continuous paths and diffusers' schedulers of flow matching and of EDM.

FlowMatchEulerDiscreteScheduler takes Euler's steps on the straight path; its network predicts the velocity and gets the
same t in [0, T]. EDMEulerScheduler and EDMDPMSolverMultistepScheduler scale input and output of the network as the
parameterization EDM does, and give it ln(sigma) / 4. None of them clips predicted images.
"""

from collections.abc import Sequence
from typing import Any

from lightning_ddpm import diffusion
from lightning_ddpm.diffusion import EDM, DPMSolverPP, RectifiedFlow, VarianceExploding
from lightning_ddpm.diffusion.samplers.base import list_steps
from lightning_ddpm.interop.diffusers.settings import SAMPLER_KEY, VERSION, Config, Settings, describe_object
from lightning_ddpm.utils.errors import UserError

FLOW, EULER, SOLVER = "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
PIPELINES = {FLOW: "DDPMPipeline", EULER: "ConsistencyModelPipeline", SOLVER: "ConsistencyModelPipeline"}
"""Of each scheduler, the pipeline of a UNet2DModel that scales noise and input as it requires."""
CLIPPING_KEY = "_lightning_ddpm_clipping"
"""Key of whether this package clips predictions in sampling, in scheduler_config.json; diffusers skips it."""
ALGORITHMS = {"dpmsolver++": 0.0, "sde-dpmsolver++": 1.0}
"""diffusers' name of DPM-Solver++ with each eta."""

FLOW_SETTINGS: Settings = {"shift": (1.0, (1.0,))}
# The other settings of FlowMatchEulerDiscreteScheduler turn something on, and are refused then; these belong to it.
FLOW_READ = {"base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "num_train_timesteps"}
FLOW_READ |= {"time_shift_type"}
EDM_SETTINGS: Settings = {
    "final_sigmas_type": ("zero", ("zero",)),
    "prediction_type": ("epsilon", ("epsilon",)),
    "sigma_schedule": ("karras", ("karras",)),
}
EDM_READ = {"num_train_timesteps", "rho", "sigma_data", "sigma_max", "sigma_min"}
SOLVER_SETTINGS: Settings = {**EDM_SETTINGS, "solver_order": (2, (2,)), "solver_type": ("midpoint", ("midpoint",))}
# The last step, to sigma = 0, is of first order whatever these two are; the others are of thresholding.
SOLVER_READ = EDM_READ | {"algorithm_type", "euler_at_final", "lower_order_final"}
SOLVER_READ |= {"dynamic_thresholding_ratio", "sample_max_value"}


def make_scheduler_config(
    path: diffusion.GaussianPath, parameterization: diffusion.Parameterization, sampler: diffusion.Sampler, clips: bool
) -> dict[str, Any]:
    """Return the scheduler_config.json of the scheduler for a continuous path.

    It is DPM-Solver++ for a model with this sampler on EDM's path, and Euler's method, of order 1, for all others.

    Raises:
        UserError: diffusers has no such path or parameterization.
    """
    if type(path) is RectifiedFlow:
        _check_parameterization(FLOW, parameterization, diffusion.FlowVelocity)
        settings: dict[str, Any] = {"_class_name": FLOW, "shift": 1.0}
    elif type(path) is VarianceExploding:
        settings = _make_edm_settings(path, parameterization, sampler)
    else:
        raise UserError(
            "diffusers has schedulers for the continuous paths RectifiedFlow and VarianceExploding only, and the "
            f"checkpoint has {type(path).__name__}"
        )
    settings |= {"_diffusers_version": VERSION, "num_train_timesteps": path.T}
    return settings | ({CLIPPING_KEY: True} if clips else {})


def _check_parameterization(kind: str, given: diffusion.Parameterization, known: type) -> None:
    if type(given) is not known:
        raise UserError(
            f"diffusers' {kind} has the parameterization {known.__name__} only, and the checkpoint has {given}"
        )


def _make_edm_settings(
    path: VarianceExploding, parameterization: diffusion.Parameterization, sampler: diffusion.Sampler
) -> dict[str, Any]:
    algorithm = _find_algorithm(sampler)
    kind = SOLVER if algorithm else EULER
    _check_parameterization(kind, parameterization, EDM)
    assert isinstance(parameterization, EDM)
    own = {"algorithm_type": algorithm, "thresholding": False} if algorithm else {}
    fixed = {name: values[0] for name, (_, values) in (SOLVER_SETTINGS if algorithm else EDM_SETTINGS).items()}
    levels = {"sigma_min": path.sigma_min, "sigma_max": path.sigma_max, "rho": path.rho}
    return {"_class_name": kind, **fixed, **own, **levels, "sigma_data": parameterization.sigma_data}


def _find_algorithm(sampler: diffusion.Sampler) -> str | None:
    """Return diffusers' name of DPM-Solver++ with the sampler's eta; ``None`` for other samplers and values."""
    names = [name for name, eta in ALGORITHMS.items() if type(sampler) is DPMSolverPP and sampler.eta == eta]
    return names[0] if names else None


def describe_sampling(kind: str, path: diffusion.GaussianPath, sampler: diffusion.Sampler) -> str:
    """Return how diffusers is asked for the steps of a sampler, or what it does in place of them.

    Args:
        kind: the scheduler.
        path: the model's.
        sampler: the model's.
    """
    algorithm = _find_algorithm(sampler) if kind == SOLVER else None
    if not algorithm and not (type(sampler) is diffusion.DDIM and sampler.eta == 0):
        return f"{kind} takes steps of its own in their place, of Euler's method"
    assert isinstance(sampler, diffusion.DDIM | DPMSolverPP)
    T, times = path.T, [t for t, _ in list_steps(path.T, sampler.spacing, sampler.steps)]
    n = len(times)
    if kind == FLOW and all(n * t == T * (n - i) for i, t in enumerate(times)):
        return f"they are set_timesteps(sigmas=[1 - i / {n} for i in range({n})])"
    is_uniform = _is_uniform(times, T)
    return f"they are num_inference_steps={n}" + ("" if is_uniform else ", which has its own choice of noise levels")


def _is_uniform(times: Sequence[int], T: int) -> bool:
    """Return whether times from T down to 1 have exactly equal gaps."""
    last = len(times) - 1
    return all(last * (T - t) == (T - 1) * i for i, t in enumerate(times))


def parse_scheduler_config(settings: Config, outputs: int) -> dict[str, Any]:
    """Convert a scheduler's configuration to a model's ``schedule``, ``sampler``, ``parameterization``, ``clipping``.

    As in :func:`lightning_ddpm.interop.diffusers.scheduler.parse_scheduler_config`, the sampler makes all T steps, and
    predictions are not clipped, unless this package exported the folder and wrote otherwise.

    Args:
        settings: of one of the schedulers of :data:`PIPELINES`.
        outputs: output channels of the network divided by image channels.

    Raises:
        UserError: a setting is not supported; the message has its name, its value and the supported values.
    """
    kind = settings.values["_class_name"]
    check_outputs(kind, outputs)
    parse = _parse_flow if kind == FLOW else _parse_edm
    parts = parse(settings, settings.read_positive_int("num_train_timesteps", 1000))
    if settings.values.get(SAMPLER_KEY):
        parts["sampler"] = settings.values[SAMPLER_KEY]
    return parts if settings.values.get(CLIPPING_KEY) else parts | {"clipping": describe_object(diffusion.NoClipping)}


def check_outputs(kind: str, outputs: int) -> None:
    """Check that the network has no output channels for a learned variance; UserError if it has."""
    if outputs != 1:
        raise UserError(
            f"diffusers' {kind} reads no variance, and the network's output has {outputs} times the images' channels"
        )


def _parse_flow(settings: Config, T: int) -> dict[str, Any]:
    settings.check_settings(FLOW_SETTINGS, FLOW_READ)
    return {
        "schedule": describe_object(RectifiedFlow, steps=T),
        "parameterization": describe_object(diffusion.FlowVelocity),
        "sampler": describe_object(diffusion.DDIM, steps=None),
    }


def _parse_edm(settings: Config, T: int) -> dict[str, Any]:
    is_solver = settings.values["_class_name"] == SOLVER
    settings.check_settings(*((SOLVER_SETTINGS, SOLVER_READ) if is_solver else (EDM_SETTINGS, EDM_READ)))
    sampler = describe_object(diffusion.DDIM, steps=None)
    if is_solver:
        eta = settings.read_choice("algorithm_type", "dpmsolver++", ALGORITHMS)
        sampler = describe_object(DPMSolverPP, steps=None, eta=eta)
    defaults = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    levels = {name: settings.read_number(name, default) for name, default in defaults.items()}
    return {
        "schedule": describe_object(VarianceExploding, **levels, steps=T),
        "parameterization": describe_object(EDM, sigma_data=settings.read_number("sigma_data", 0.5)),
        "sampler": sampler,
    }
