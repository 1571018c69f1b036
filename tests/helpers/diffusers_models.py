"""Models in the formats of this package and of diffusers, with equal random numbers in both."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DModel
from helpers.tiny import tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    Ancestral,
    ContinuousPath,
    Cosine,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoClipping,
    Quadratic,
    Sigmoid,
    Velocity,
    ZeroTerminalSNR,
)
from lightning_ddpm.models.checkpoint import build_hyper_parameters, load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet, UNetLayers

diffusers.utils.logging.disable_progress_bar()

T = 20
WEIGHTS = "diffusion_pytorch_model"
GOOGLE: dict[str, Any] = {  # config.json of google/ddpm-cifar10-32, with fewer channels
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [8, 16, 16, 16],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
GOOGLE_SCHEDULER: dict[str, Any] = {  # its scheduler_config.json with another T
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": T,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
DIGITS = GOOGLE | {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "in_channels": 1,
    "layers_per_block": 1,
    "out_channels": 1,
    "sample_size": 8,
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def _data(value: Any) -> Any:
    """Return the description of an object in a checkpoint."""
    kind = type(value)
    given = {name.lstrip("_"): each for name, each in vars(value).items() if not name.startswith("__")}
    if isinstance(value, ZeroTerminalSNR):
        signal = torch.tensor(value.values, dtype=torch.float64)
        given = {"schedule": _data(ExplicitBetas((1 - (signal[1:] / signal[:-1]) ** 2).tolist()))}
    elif isinstance(value, ExplicitBetas):
        given = {"betas": value.beta[1:].tolist()}
    elif isinstance(value, ContinuousPath):
        given = {name: given[name] for name in ("sigma_min", "sigma_max", "rho") if name in given} | {"steps": value.T}
    elif hasattr(value, "beta"):
        given = {name: given[name] for name in ("beta_min", "beta_max", "offset") if name in given} | {"steps": value.T}
    if "variance" in given:
        given["variance"] = _data(given["variance"])
    if "spacing" in given:
        given["spacing"] = f"{given['spacing'].__module__}.{given['spacing'].__name__}"
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": given}


NETWORK: dict[str, Any] = {"channels": 1, "size": 8, "width": 8, "multipliers": [1, 2], "attention": [4]}
NETWORK |= {"blocks": 1, "groups": 4, "dropout": 0.1}


def write_checkpoint(path: Path, network: dict[str, Any] | None = None, **parts: Any) -> Path:
    """Write a checkpoint with random averaged weights, and raw weights that differ from them."""
    arguments = NETWORK | (network or {})
    layers = {"layers": UNetLayers(**arguments["layers"]["init_args"])} if "layers" in arguments else {}
    model = tiny_model(network=UNet(**arguments | layers), **parts)
    randomise(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    init = {name: _data(getattr(model, name)) for name in ("schedule", "sampler", "parameterization")}
    init |= {"clipping": _data(model.clipping)} if model.clipping else {}
    init |= {"network": {"class_path": "lightning_ddpm.networks.UNet", "init_args": arguments}}
    content = {
        "state_dict": state,
        "current_model_state": {name: value + 1 for name, value in state.items()},
        "hyper_parameters": build_hyper_parameters(
            {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": init}
        ),
    }
    torch.save(content, path)
    return path


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """Change the weights so that each of them affects the output."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter += 0.07 * torch.randn(parameter.shape, generator=generator)


class StepNoise:
    """The same noise in the same order for both programs: first x_T, then that of each stochastic step."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(11)

    def __call__(self, *_: object, **__: object) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)


@torch.no_grad()
def sample_here(model: DDPM) -> Tensor:
    """Sample four images in [0, 1] with the model's own sampler."""
    noise = StepNoise(4, *model.image_shape)
    return (model.sampler.sample(model.denoiser, noise(), noise) / 2 + 0.5).clamp(0, 1)


def sample_in_diffusers(pipeline: Any, monkeypatch: pytest.MonkeyPatch, **call: Any) -> Tensor:
    """Sample four images in [0, 1] with a pipeline of diffusers from the same noise."""
    config = pipeline.unet.config
    noise = StepNoise(4, config.in_channels, config.sample_size, config.sample_size)
    for module in {type(pipeline).__module__, type(pipeline.scheduler).__module__}:
        monkeypatch.setattr(sys.modules[module], "randn_tensor", noise)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": pipeline.scheduler.config.num_train_timesteps} | call
    return torch.from_numpy(pipeline(batch_size=4, output_type="np", **call).images).permute(0, 3, 1, 2)


def assert_same_images(first: Tensor, second: Tensor, atol: float = 1e-4) -> None:
    assert first.std() > 0.05  # neither all black nor all gray
    torch.testing.assert_close(first, second, rtol=0, atol=atol)


def assert_same_samples(model: DDPM, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare samples with diffusers' own schedule, and with ours in float64 in place of it.

    diffusers' alpha_bar is in float32, so 1 - alpha_bar_1 has a relative error of up to 3e-4. With an untrained network
    that predicts x_0 or v, this changes images by up to 1e-4, depending on the CPU; only the second comparison is made.
    """
    if isinstance(model.parameterization, Epsilon):
        assert_same_images(sample_here(model), sample_in_diffusers(pipe, monkeypatch))
    exact = model.schedule.alpha_bar[1:].double()
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), exact, rtol=1e-5, atol=1e-6)
    pipe.scheduler.alphas_cumprod = exact
    assert_same_images(sample_here(model), sample_in_diffusers(pipe, monkeypatch), atol=5e-5)


def make_pipeline(unet: dict[str, Any], chain: dict[str, Any] | None = None, kind: str = "DDPM") -> Any:
    net = UNet2DModel(**unet)
    randomise(net)
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**(GOOGLE_SCHEDULER | (chain or {})))
    return getattr(diffusers, f"{kind}Pipeline")(unet=net, scheduler=scheduler)


def flatten_folder(folder: Path, weights_name: str) -> None:
    """Rearrange a saved pipeline like google/ddpm-cifar10-32: all files in one folder, old names of attention."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / "unet" / f"{WEIGHTS}.safetensors")
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".query." in key for key in state)
    (folder / "unet" / "config.json").rename(folder / "config.json")
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    for name in ("unet", "scheduler"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()
    if weights_name.endswith(".bin"):
        torch.save(state, folder / weights_name)
    else:
        save_file(state, folder / weights_name)


def change_json(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


MODELS: dict[str, dict[str, Any]] = {
    "as_ho": {"schedule": Linear(T), "sampler": Ancestral(FixedLarge())},
    "cosine": {"schedule": Cosine(T), "sampler": Ancestral(FixedSmall())},
    "another_cosine": {"schedule": Cosine(T, offset=0.1), "sampler": Ancestral(FixedSmall())},
    "quadratic_x_0": {"schedule": Quadratic(8), "sampler": Ancestral(FixedSmall()), "parameterization": X0()},
    "sigmoid_v": {"schedule": Sigmoid(T), "sampler": Ancestral(FixedLarge()), "parameterization": Velocity()},
    "betas": {"schedule": ExplicitBetas([0.1, 0.3, 0.2, 0.5]), "sampler": Ancestral(FixedLarge())},
    "learned": {
        "network": {"outputs": 2},
        "schedule": Linear(T, 1e-3, 0.2),
        "sampler": Ancestral(LearnedRange()),
    },
    "unclipped_v": {
        "schedule": Linear(T, 1e-3, 0.2),
        "sampler": Ancestral(FixedSmall()),
        "parameterization": Velocity(),
        "clipping": NoClipping(),
    },
    "wide_colour": {
        "network": {"channels": 3, "size": 16, "multipliers": [1, 3, 2], "attention": [8, 16], "blocks": 2},
        "schedule": Linear(T, 1e-3, 0.2),
        "sampler": Ancestral(FixedSmall()),
    },
}


def import_pipeline(folder: Path, command: Any) -> DDPM:
    status, _, err = command("import", "--folder", folder, "--out", folder.parent / "imported.ckpt")
    assert status == 0, err
    return load(folder.parent / "imported.ckpt", DDPM)
