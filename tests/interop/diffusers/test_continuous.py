"""Flows and EDM's models generate the same images in diffusers, by its pipelines and by loops around its schedulers."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from helpers.command_line import REPOSITORY, read_yaml
from helpers.diffusers_models import (
    DIGITS,
    WEIGHTS,
    assert_same_images,
    change_json,
    import_pipeline,
    make_pipeline,
    randomise,
    sample_here,
    sample_in_diffusers,
    write_checkpoint,
)
from helpers.known_data import randn
from helpers.tiny import same, weights
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    EDM,
    X0,
    Ancestral,
    ContinuousPath,
    DPMSolverPP,
    EDMHeun,
    FixedSmall,
    FlowVelocity,
    NoClipping,
    QuantileThreshold,
    RectifiedFlow,
    VarianceExploding,
    Velocity,
    quadratic_spacing,
    trailing_spacing,
)
from lightning_ddpm.interop.diffusers.continuous import make_scheduler_config
from lightning_ddpm.interop.diffusers.unet import make_unet_config
from lightning_ddpm.interop.diffusers.weights import export_weights
from lightning_ddpm.models.checkpoint import build_hyper_parameters, load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet, UNetLayers
from lightning_ddpm.utils.errors import UserError

X_T = randn(4, 1, 8, 8, seed=5)
FLOW = {"schedule": RectifiedFlow(), "parameterization": FlowVelocity()}
LEVELS = {"schedule": VarianceExploding(0.01, 50.0, rho=5.0), "parameterization": EDM(0.6)}
SETTINGS: dict[str, dict[str, Any]] = {
    "flow": FLOW | {"sampler": DDIM(10, spacing=trailing_spacing)},
    "flow_of_100": FLOW | {"schedule": RectifiedFlow(100), "sampler": DDIM(4), "network": {"dropout": 0.0}},
    "euler": LEVELS | {"sampler": DDIM(10)},
    "solver": LEVELS | {"sampler": DPMSolverPP(28)},
    "solver_of_the_sde": LEVELS | {"sampler": DPMSolverPP(10, eta=1.0)},
    "heun": LEVELS | {"sampler": EDMHeun(12, rho=5.0)},
}
OFFSETS = {"layers": {"class_path": "lightning_ddpm.networks.UNetLayers", "init_args": {"time_offset": 0}}}


def export(folder: Path, command: Any, *options: str, **parts: Any) -> tuple[DDPM, Any, str]:
    """Return a model with random weights, its pipeline in diffusers, and what ``export`` printed."""
    path = write_checkpoint(folder / "model.ckpt", **parts)
    status, out, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", folder / "out", *options)
    assert status == 0, err
    return load(path), DiffusionPipeline.from_pretrained(folder / "out"), out


@torch.no_grad()
def generate(model: DDPM) -> Tensor:
    x = model.sampler.sample(model.denoiser, X_T)
    assert 0.05 < x.std() < 20
    return x


@torch.no_grad()
def run_flow(pipe: Any, clips: bool, **steps: Any) -> Tensor:
    """Return images by diffusers' scheduler of flows, from the noise X_T."""
    unet, scheduler, x = pipe.unet, pipe.scheduler, X_T
    scheduler.set_timesteps(**steps)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        velocity = unet(x, t).sample
        if clips:
            velocity = (x - (x - sigma * velocity).clamp(-1, 1)) / sigma
        x = scheduler.step(velocity, t, x).prev_sample
    return x


@torch.no_grad()
def run_euler(pipe: Any, clips: bool, n: int) -> Tensor:
    """Return images by diffusers' EDMEulerScheduler, from the noise X_T."""
    unet, scheduler = pipe.unet, pipe.scheduler
    scheduler.set_timesteps(n)
    x = X_T * scheduler.init_noise_sigma
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        output = unet(scheduler.scale_model_input(x, t), t).sample
        x_0 = scheduler.precondition_outputs(x, output, sigma)
        x = scheduler.step(output, t, x, pred_original_sample=x_0.clamp(-1, 1) if clips else None).prev_sample
    return x


@torch.no_grad()
def run_heun(pipe: Any, clips: bool, n: int) -> Tensor:
    """Return images by Karras et al. 2022, Algorithm 2, on the noise levels and with the functions of diffusers."""
    unet, scheduler = pipe.unet, pipe.scheduler
    scheduler.set_timesteps(n)

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        output = unet(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)).sample
        x_0 = scheduler.precondition_outputs(x, output, sigma)
        return (x - (x_0.clamp(-1, 1) if clips else x_0)) / sigma

    x = X_T * scheduler.init_noise_sigma
    for sigma, following in pairwise(scheduler.sigmas):
        first = slope(x, sigma)
        step = x + (following - sigma) * first
        if following > 0:
            step = x + (following - sigma) * (first + slope(step, following)) / 2
        x = step
    return x


@pytest.mark.parametrize("clips", [False, True], ids=["free", "clipped"])
@pytest.mark.parametrize("offset", [{}, OFFSETS], ids=["t", "time_offset_0"])
def test_a_flow_generates_the_same_by_diffusers_scheduler(offset, clips, tmp_path, command) -> None:
    parts = SETTINGS["flow"] | ({} if clips else {"clipping": NoClipping()})
    model, pipe, out = export(tmp_path, command, network=offset, **parts)
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert "in diffusers they are set_timesteps(sigmas=[1 - i / 10 for i in range(10)])" in out
    assert ("does not clip predicted images to the range" in out) == clips
    expected = generate(model)
    found = run_flow(pipe, clips, sigmas=[1 - i / 10 for i in range(10)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if clips:
        unclipped = run_flow(pipe, False, sigmas=[1 - i / 10 for i in range(10)])
        assert (unclipped - expected).abs().max() > 0.01, "clipping makes a difference, and the loop must have it"


@pytest.mark.parametrize("name", ["flow_of_100", "euler", "solver", "solver_of_the_sde"])
def test_diffusers_own_pipeline_generates_the_same_images(name, tmp_path, command, monkeypatch) -> None:
    model, pipe, out = export(tmp_path, command, clipping=NoClipping(), **SETTINGS[name])
    n = model.sampler.nfe(model.schedule.T)
    assert f"in diffusers they are num_inference_steps={n}\n" in out
    assert "clip" not in out
    assert_same_images(sample_here(model), sample_in_diffusers(pipe, monkeypatch, num_inference_steps=n))


@pytest.mark.parametrize("clips", [False, True], ids=["free", "clipped"])
def test_edms_models_generate_the_same_by_diffusers_scheduler(clips, tmp_path, command) -> None:
    clipping = {} if clips else {"clipping": NoClipping()}
    for name, run in (("euler", run_euler), ("heun", run_heun)):
        (tmp_path / name).mkdir()
        model, pipe, out = export(tmp_path / name, command, **SETTINGS[name], **clipping)
        assert type(pipe.scheduler).__name__ == "EDMEulerScheduler"
        if name == "heun":
            assert "EDMEulerScheduler takes steps of its own in their place, of Euler's method" in out
        found = run(pipe, clips, model.sampler.steps)
        torch.testing.assert_close(found, generate(model), rtol=0, atol=1e-4)


def write_config_checkpoint(path: Path, name: str) -> Path:
    """Write a checkpoint of a config's model with random weights, on digits."""
    init = read_yaml(REPOSITORY / "configs" / f"{name}.yaml")["model"]["init_args"]
    init["network"]["init_args"] |= {"channels": 1, "size": 8}
    network = UNet(**init["network"]["init_args"])
    randomise(network)
    parts = {name: init[name] for name in ("network", "schedule", "parameterization", "timesteps", "sampler")}
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    described = {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": parts}
    torch.save({"state_dict": state, "hyper_parameters": build_hyper_parameters(described)}, path)
    return path


@pytest.mark.parametrize("name", ["digits_flow", "digits_edm"])
def test_the_models_of_the_configs_are_exported(name, tmp_path, command) -> None:
    path = write_config_checkpoint(tmp_path / "model.ckpt", name)
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 0, err
    pipe, model = DiffusionPipeline.from_pretrained(tmp_path / "out"), load(path)
    if name == "digits_flow":
        found = run_flow(pipe, True, sigmas=[1 - i / 50 for i in range(50)])
    else:
        found = run_heun(pipe, True, 18)
    torch.testing.assert_close(found, generate(model), rtol=0, atol=1e-4)
    torch.testing.assert_close(generate(import_pipeline(tmp_path / "out", command)), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("clipping", [None, NoClipping()], ids=str)
def test_what_is_exported_is_imported_to_the_same_images(name, clipping, tmp_path, command) -> None:
    model, _, _ = export(tmp_path, command, clipping=clipping, **SETTINGS[name])
    other = import_pipeline(tmp_path / "out", command)
    assert str(other.sampler) == str(model.sampler)
    assert (str(other.schedule), str(other.parameterization)) == (str(model.schedule), str(model.parameterization))
    assert str(other.clipping) == str(model.clipping)
    assert other.network.layers.time_offset == 0, "diffusers' network gets the time itself"
    torch.testing.assert_close(sample_here(other), sample_here(model), rtol=0, atol=1e-4)
    again = ("export", "--ckpt", tmp_path / "imported.ckpt", "--format", "diffusers", "--out", tmp_path / "2")
    status, _, err = command(*again)
    assert status == 0, err
    for file in (f"unet/{WEIGHTS}.safetensors", "unet/config.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def save_pipeline(folder: Path, kind: str, **settings: Any) -> Path:
    """Save an untrained model of diffusers with one of its schedulers, as its own pipelines are saved."""
    pipe = make_pipeline(DIGITS | {"freq_shift": 0, "flip_sin_to_cos": True})
    pipe.save_pretrained(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.0"} | settings))
    change_json(folder / "model_index.json", scheduler=["diffusers", kind])
    return folder


def test_a_flow_of_diffusers_is_imported_with_all_steps_and_without_clipping(tmp_path, command) -> None:
    folder = save_pipeline(tmp_path / "in", "FlowMatchEulerDiscreteScheduler", num_train_timesteps=20, shift=1.0)
    model = import_pipeline(folder, command)
    assert (str(model.sampler), str(model.clipping)) == (str(DDIM(None)), "NoClipping")
    pipe = DiffusionPipeline.from_pretrained(folder)
    torch.testing.assert_close(run_flow(pipe, False, num_inference_steps=20), generate(model), rtol=0, atol=1e-4)


def test_a_model_of_diffusers_with_edms_scheduler_is_imported(tmp_path, command) -> None:
    folder = save_pipeline(tmp_path / "in", "EDMDPMSolverMultistepScheduler", num_train_timesteps=20, sigma_data=0.7)
    model = import_pipeline(folder, command)
    assert (str(model.parameterization), str(model.sampler)) == (str(EDM(0.7)), str(DPMSolverPP(None)))
    assert isinstance(model.schedule, VarianceExploding)
    assert (model.schedule.sigma_max, model.schedule.rho, model.schedule.T) == (80.0, 7.0, 20)
    change_json(folder / "scheduler" / "scheduler_config.json", algorithm_type="sde-dpmsolver++")
    (tmp_path / "imported.ckpt").unlink()
    (tmp_path / "imported.yaml").unlink()
    assert str(import_pipeline(folder, command).sampler) == str(DPMSolverPP(None, eta=1.0))


def test_times_that_diffusers_would_choose_otherwise_are_reported(tmp_path, command) -> None:
    flow = FLOW | {"sampler": DDIM(10, spacing=quadratic_spacing)}
    assert "num_inference_steps=10, which has its own choice of noise levels" in export(tmp_path, command, **flow)[2]


class Steep(ContinuousPath):
    """A path that diffusers has not."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - (t / self.T) ** 2, t / self.T

    def time_at(self, angle: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (FLOW | {"parameterization": X0()}, (), "DiscreteScheduler has the parameterization FlowVelocity only, and"),
        (LEVELS | {"parameterization": Velocity()}, (), "EDMEulerScheduler has the parameterization EDM only, and the"),
        (FLOW | {"network": {"outputs": 2}}, (), "reads no variance, and the network's output has 2 times the images'"),
        (FLOW | {"network": {"intervals": True}}, (), "not given the length of a step, and this network is (intervals"),
        (FLOW | {"clipping": QuantileThreshold()}, (), "clip to the range, or not at all, and the checkpoint has Quan"),
        (FLOW, ("--variance", "fixed_small"), "--variance is of a DDPMScheduler's steps, and the checkpoint has Rect"),
    ],
)
def test_what_diffusers_has_not_is_refused_by_name(parts, options, message, tmp_path, command) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", **{"sampler": Ancestral(FixedSmall(), 5)} | parts)
    arguments = ("--format", "diffusers", "--out", tmp_path / "out", *options)
    status, _, err = command("export", "--ckpt", path, *arguments)
    assert status == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_paths_that_diffusers_has_not_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="RectifiedFlow and VarianceExploding only, and the checkpoint has Steep"):
        make_scheduler_config(Steep(10), FlowVelocity(), DDIM(2), clips=True)


UNSUPPORTED = [
    ("FlowMatchEulerDiscreteScheduler", "shift", 3.0, "1.0"),
    *(
        ("FlowMatchEulerDiscreteScheduler", name, True, "null")
        for name in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling", "use_karras_sigmas")
    ),
    ("FlowMatchEulerDiscreteScheduler", "num_train_timesteps", 0, "an integer of at least 1"),
    ("EDMEulerScheduler", "prediction_type", "v_prediction", "'epsilon'"),
    ("EDMEulerScheduler", "sigma_schedule", "exponential", "'karras'"),
    ("EDMEulerScheduler", "final_sigmas_type", "sigma_min", "'zero'"),
    ("EDMEulerScheduler", "sigma_data", "half", "a number"),
    ("EDMDPMSolverMultistepScheduler", "solver_order", 3, "2"),
    ("EDMDPMSolverMultistepScheduler", "solver_type", "heun", "'midpoint'"),
    ("EDMDPMSolverMultistepScheduler", "algorithm_type", "deis", "dpmsolver++, sde-dpmsolver++"),
    ("EDMDPMSolverMultistepScheduler", "thresholding", True, "null"),
]


@pytest.mark.parametrize(("kind", "name", "value", "supported"), UNSUPPORTED)
def test_an_unsupported_setting_is_named(kind, name, value, supported, tmp_path, command) -> None:
    folder = save_pipeline(tmp_path / "in", kind, **{name: value})
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert f"scheduler_config.json has {name}={value!r}, which is not supported; supported: {supported}\n" in err
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("cosines_first", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [(1, 0), (0, 1), (3, 1)])
def test_the_layer_behind_the_features_of_time_makes_up_for_another_offset(ours, theirs, cosines_first) -> None:
    layers = UNetLayers(time_offset=ours, cosines_first=cosines_first)
    network = UNet(1, 8, 8, (1, 2), (4,), 1, 0.0, 4, layers=layers).eval()
    randomise(network)
    before = weights(network)
    twin = UNet2DModel.from_config(make_unet_config(network)).eval()
    twin.load_state_dict(export_weights(network, theirs))
    assert same(weights(network), before), "the network itself is left as it is"
    t = torch.tensor([1.0, 37.25, 900.5, 1000.0])
    with torch.no_grad():
        torch.testing.assert_close(network(X_T, t), twin(X_T, t - theirs).sample, rtol=0, atol=5e-5)


def test_classes_are_an_argument_of_the_pipeline_of_edms_models(tmp_path, command, monkeypatch) -> None:
    parts = SETTINGS["euler"] | {"clipping": NoClipping(), "network": {"classes": 3}}
    model, pipe, out = export(tmp_path, command, **parts)
    assert "its 3 classes are the argument class_labels of the pipeline's call" in out
    call = {"num_inference_steps": 10, "class_labels": [0, 2, 1, 3]}
    found = sample_in_diffusers(pipe, monkeypatch, **call)
    x_T = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        x = model.sampler.sample(model.denoiser_for(torch.tensor([0, 2, 1, -1])), x_T)
    assert_same_images((x / 2 + 0.5).clamp(0, 1), found)
