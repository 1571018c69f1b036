"""To and from diffusers: the same noise gives the same images there and here, and what does not fit is said."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.command_line import callback, ddpm, tiny_digits, write_yaml
from helpers.tiny import same, tiny_model, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    PosteriorMean,
    Quadratic,
    Sigmoid,
    Velocity,
)
from lightning_ddpm.interop import diffusers as diffusers_format
from lightning_ddpm.models.checkpoint import build_hyper_parameters, load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError

diffusers.utils.logging.disable_progress_bar()

T = 20
WEIGHTS = "diffusion_pytorch_model"
GOOGLE: dict[str, Any] = {  # google/ddpm-cifar10-32's config.json, narrower
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
GOOGLE_CHAIN: dict[str, Any] = {  # its scheduler_config.json, but for T
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


# ---- what the tests need ---------------------------------------------------------------------------------------------


def _data(value: Any) -> Any:
    """An object of ours as a checkpoint describes it."""
    kind = type(value)
    given = {name.lstrip("_"): each for name, each in vars(value).items() if not name.startswith("__")}
    if isinstance(value, ExplicitBetas):
        given = {"betas": value.beta[1:].tolist()}
    elif hasattr(value, "beta"):
        given = {name: given[name] for name in ("beta_min", "beta_max", "offset") if name in given} | {"steps": value.T}
    if "variance" in given:
        given["variance"] = _data(given["variance"])
    if "spacing" in given:
        given["spacing"] = f"{given['spacing'].__module__}.{given['spacing'].__name__}"
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": given}


NETWORK: dict[str, Any] = {"channels": 1, "size": 8, "width": 8, "multipliers": [1, 2], "attention": [4]}
NETWORK |= {"blocks": 1, "groups": 4, "dropout": 0.1}


def checkpoint(path: Path, network: dict[str, Any] | None = None, **parts: Any) -> Path:
    """A checkpoint as a run leaves it: random averaged weights, others beside them."""
    arguments = NETWORK | (network or {})
    model = tiny_model(network=UNet(**arguments), **parts)
    randomise(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    init = {name: _data(getattr(model, name)) for name in ("schedule", "sampler", "parameterization")}
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
    """Weights of which every one shows in the output."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter += 0.07 * torch.randn(parameter.shape, generator=generator)


class StepNoise:
    """The same noise in the same order for both programs: x_T first, then one for every step that asks."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(11)

    def __call__(self, *_: object, **__: object) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)


@torch.no_grad()
def ours(model: DDPM) -> Tensor:
    """Four images by the model's own sampler, in [0, 1]."""
    noise = StepNoise(4, *model.image_shape)
    return (model.sampler.sample(model.denoiser, noise(), noise) / 2 + 0.5).clamp(0, 1)


def theirs(pipeline: Any, monkeypatch: pytest.MonkeyPatch, **call: Any) -> Tensor:
    """Four images of the pipeline from the same noise, in [0, 1]."""
    config = pipeline.unet.config
    noise = StepNoise(4, config.in_channels, config.sample_size, config.sample_size)
    for module in {type(pipeline).__module__, type(pipeline.scheduler).__module__}:
        monkeypatch.setattr(sys.modules[module], "randn_tensor", noise)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": pipeline.scheduler.config.num_train_timesteps} | call
    return torch.from_numpy(pipeline(batch_size=4, output_type="np", **call).images).permute(0, 3, 1, 2)


def assert_same_images(first: Tensor, second: Tensor, atol: float = 1e-4) -> None:
    assert first.std() > 0.05  # not all black, not all grey
    torch.testing.assert_close(first, second, rtol=0, atol=atol)


def assert_draws_alike(model: DDPM, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in exact tables. diffusers' alpha_bar is float32, whose 1 - alpha_bar_1 is up to 3e-4 of itself off.

    An untrained network that predicts x_0 or v makes up to 1e-4 of that in an image; how much, the processor decides.
    """
    if isinstance(model.parameterization, Epsilon):
        assert_same_images(ours(model), theirs(pipe, monkeypatch))
    exact = model.schedule.alpha_bar[1:].double()
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), exact, rtol=1e-5, atol=1e-6)
    pipe.scheduler.alphas_cumprod = exact
    assert_same_images(ours(model), theirs(pipe, monkeypatch), atol=5e-5)


def pipeline(unet: dict[str, Any], chain: dict[str, Any] | None = None, kind: str = "DDPM") -> Any:
    net = UNet2DModel(**unet)
    randomise(net)
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**(GOOGLE_CHAIN | (chain or {})))
    return getattr(diffusers, f"{kind}Pipeline")(unet=net, scheduler=scheduler)


def in_root(folder: Path, weights_name: str) -> None:
    """What a saved pipeline looks like in google/ddpm-cifar10-32: all in one folder, attention by its old names."""
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


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# ---- export ----------------------------------------------------------------------------------------------------------

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
    "wide_colour": {
        "network": {"channels": 3, "size": 16, "multipliers": [1, 3, 2], "attention": [8, 16], "blocks": 2},
        "schedule": Linear(T, 1e-3, 0.2),
        "sampler": Ancestral(FixedSmall()),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_draws_the_same_images_in_diffusers(name, tmp_path, command, monkeypatch):
    path = checkpoint(tmp_path / "model.ckpt", **MODELS[name])
    status, out, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 0, err
    assert "EMA weights" in out
    pipe = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, DDPMScheduler)
    assert_draws_alike(load(path, DDPM), pipe, monkeypatch)


def test_it_draws_the_same_with_many_steps(tmp_path, command, monkeypatch):
    path = checkpoint(tmp_path / "model.ckpt", schedule=Linear(250, 4e-4, 0.08), sampler=Ancestral(FixedLarge()))
    assert command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    assert_same_images(ours(load(path, DDPM)), theirs(DDPMPipeline.from_pretrained(tmp_path / "out"), monkeypatch))


def test_a_ddim_model_draws_the_same_with_the_call_that_is_printed(tmp_path, command, monkeypatch):
    path = checkpoint(tmp_path / "model.ckpt", schedule=Linear(T), sampler=DDIM(steps=None, eta=0.5))
    _, out, _ = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert "variance fixed_small" in out
    assert "DDIMPipeline: eta=0.5, use_clipped_model_output=True, num_inference_steps=20" in out
    assert "diffusers chooses" not in out
    pipe = DDIMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, DDIMScheduler)
    call = {"eta": 0.5, "use_clipped_model_output": True}
    assert_same_images(ours(load(path, DDPM)), theirs(pipe, monkeypatch, **call))


def test_fewer_steps_are_said_to_be_the_callers(tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt", sampler=Ancestral(FixedSmall(), steps=5))
    _, out, _ = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert "num_inference_steps=5; diffusers has its own choice of these steps among the T" in out


def test_the_folder_has_what_from_pretrained_needs_and_the_averaged_weights(tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt")
    command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    files = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    unet, chain = {"unet/config.json", f"unet/{WEIGHTS}.safetensors"}, {"scheduler/scheduler_config.json"}
    assert files == unet | chain | {"model_index.json"}
    state = load_file(tmp_path / "out" / "unet" / f"{WEIGHTS}.safetensors")
    averaged = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["conv_in.weight"], averaged["network.first.weight"])


def test_another_variance_can_be_asked_for(tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt", sampler=DDIM(5))
    out = tmp_path / "out"
    arguments = ("--format", "diffusers", "--out", out, "--variance", "fixed_large")
    status, said, _ = command("export", "--ckpt", path, *arguments)
    assert status == 0
    assert "DDIM" not in said
    assert DDPMPipeline.from_pretrained(out).scheduler.config.variance_type == "fixed_large"


class OwnSampler(Ancestral):
    pass


class OwnNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels, self.size = 1, 8


def refusals() -> dict[str, tuple[Any, str]]:
    chain, net = diffusers_format.make_scheduler_config, diffusers_format.make_unet_config
    wide = UNet(1, 8, width=8, multipliers=(2, 2), attention=(), blocks=1, groups=4)
    told = UNet(1, 8, width=8, multipliers=(1, 2), attention=(), blocks=1, groups=4, classes=3)
    return {
        "mu": (
            lambda: chain(Cosine(T), PosteriorMean(), FixedSmall()),
            "has the parameterizations Epsilon, X0, Velocity only, and the checkpoint has PosteriorMean",
        ),
        "sampler": (
            lambda: diffusers_format.choose_variance(OwnSampler(FixedSmall()), 1),
            "has Ancestral sampling only, and the checkpoint's sampler is OwnSampler.*give --variance fixed_small",
        ),
        "network": (lambda: net(OwnNetwork()), "only lightning_ddpm.networks.UNet can be exported .* is .*OwnNetwork"),
        "classes": (
            lambda: net(told),
            "has no class condition, and this network has 3 classes; only models without classes",
        ),
        "first_multiplier": (lambda: net(wide), "this network has 16 and 8; only models whose first multiplier is 1"),
        "outputs": (
            lambda: diffusers_format.check_outputs("fixed_small", 2),
            "2 times the images' channels and the variance is fixed_small; diffusers expects 2 times with learned_range",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_diffusers_cannot_express_is_said(name):
    call, sentence = refusals()[name]
    with pytest.raises(UserError, match=sentence):
        call()


def test_a_mistake_in_export_leaves_no_folder_and_ends_with_2(tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt", parameterization=PosteriorMean())
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: diffusers' DDPMScheduler has the parameterizations")
    assert not (tmp_path / "out").exists()


def test_export_writes_over_nothing(tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 2
    assert f"{tmp_path / 'out'} is not empty; choose another folder" in err


# ---- import ----------------------------------------------------------------------------------------------------------


def imported(folder: Path, command: Any) -> DDPM:
    status, _, err = command("import", "--folder", folder, "--out", folder.parent / "imported.ckpt")
    assert status == 0, err
    return load(folder.parent / "imported.ckpt", DDPM)


PIPELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as_googles": (GOOGLE, {}),
    "cosine": (DIGITS, {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small"}),
    "scaled_linear": (DIGITS, {"beta_schedule": "scaled_linear", "beta_end": 0.2}),
    "sigmoid": (DIGITS, {"beta_schedule": "sigmoid", "variance_type": "fixed_small_log"}),
    "sample": (DIGITS, {"prediction_type": "sample", "trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3}),
    "velocity": (DIGITS, {"prediction_type": "v_prediction"}),
    "learned": (DIGITS | {"out_channels": 2}, {"variance_type": "learned_range", "beta_end": 0.2}),
    "one_head": (DIGITS | {"attention_head_dim": 16, "act_fn": "swish"}, {}),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_an_imported_model_draws_the_same_images_here(name, tmp_path, command, monkeypatch):
    pipe = pipeline(*PIPELINES[name])
    pipe.save_pretrained(tmp_path / "in")
    assert_draws_alike(imported(tmp_path / "in", command), pipe, monkeypatch)


@pytest.mark.parametrize("file", [f"{WEIGHTS}.bin", f"{WEIGHTS}.safetensors"])
def test_a_folder_like_googles_with_all_in_its_root_and_old_names_does_too(file, tmp_path, command, monkeypatch):
    pipe = pipeline(GOOGLE)
    pipe.save_pretrained(tmp_path / "in")
    in_root(tmp_path / "in", file)
    (tmp_path / "in" / "config.json").write_text(json.dumps(GOOGLE | {"_class_name": "UNet2DModel"}))
    chain = GOOGLE_CHAIN | {"_class_name": "DDPMScheduler"}
    (tmp_path / "in" / "scheduler_config.json").write_text(json.dumps(chain))
    assert_same_images(ours(imported(tmp_path / "in", command)), theirs(pipe, monkeypatch))


def test_a_ddim_pipeline_is_imported_over_all_steps(tmp_path, command, monkeypatch):
    pipe = DDIMPipeline(pipeline(DIGITS).unet, DDIMScheduler(num_train_timesteps=T))
    pipe.save_pretrained(tmp_path / "in")
    model = imported(tmp_path / "in", command)
    assert isinstance(model.sampler, DDIM)
    assert_same_images(ours(model), theirs(pipe, monkeypatch, use_clipped_model_output=True))


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (Linear(1000), {"beta_schedule": "linear"}),
        (Quadratic(1000), {"beta_schedule": "scaled_linear"}),
        (Cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
        (Sigmoid(1000), {"beta_schedule": "sigmoid"}),
    ],
    ids=str,
)
def test_the_schedules_are_diffusers(schedule, settings):
    them = DDPMScheduler(**settings)
    torch.testing.assert_close(schedule.beta[1:], them.betas.double(), rtol=2e-4, atol=1e-8)
    torch.testing.assert_close(schedule.alpha_bar[1:], them.alphas_cumprod.double(), rtol=1e-3, atol=1e-9)


def test_googles_cifar10_network_is_hos():
    google = GOOGLE | {"block_out_channels": [128, 256, 256, 256], "norm_num_groups": 32, "_class_name": "UNet2DModel"}
    arguments = diffusers_format.parse_unet_config(google)
    assert arguments == {
        "channels": 3,
        "size": 32,
        "width": 128,
        "multipliers": [1, 2, 2, 2],
        "attention": [16],
        "blocks": 2,
        "dropout": 0.0,
        "groups": 32,
        "outputs": 1,
    }
    with torch.device("meta"):
        written = diffusers_format.make_unet_config(UNet(**arguments))
    assert {name: written[name] for name in google} == google


@pytest.mark.parametrize("name", ["as_ho", "betas", "learned", "wide_colour"])
def test_there_and_back_the_model_is_the_same(name, tmp_path, command):
    path = checkpoint(tmp_path / "model.ckpt", **MODELS[name])
    command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    there, back = load(path, DDPM), imported(tmp_path / "out", command)
    assert same(weights(there), weights(back))
    assert str(there.network) == str(back.network)  # dropout included
    assert str(there.sampler) == str(back.sampler)
    assert type(there.schedule) is type(back.schedule)
    assert torch.equal(there.schedule.beta, back.schedule.beta)
    status, _, err = command(
        "export", "--ckpt", tmp_path / "imported.ckpt", "--format", "diffusers", "--out", tmp_path / "2"
    )
    assert status == 0, err
    for file in (f"unet/{WEIGHTS}.safetensors", "unet/config.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.fixture
def folder(tmp_path):
    """A saved pipeline."""
    pipeline(DIGITS).save_pretrained(tmp_path / "in")
    return tmp_path / "in"


UNSUPPORTED = [
    ("unet", "act_fn", "gelu", "'silu' and 'swish'"),
    ("unet", "flip_sin_to_cos", True, "False"),
    ("unet", "freq_shift", 0, "1"),
    ("unet", "downsample_padding", 1, "0"),
    ("unet", "norm_eps", 1e-5, "1e-06"),
    ("unet", "center_input_sample", True, "False"),
    ("unet", "time_embedding_type", "fourier", "'positional'"),
    ("unet", "resnet_time_scale_shift", "scale_shift", "'default'"),
    ("unet", "add_attention", False, "True"),
    ("unet", "mid_block_scale_factor", 2, "1"),
    ("unet", "num_class_embeds", 10, "None"),
    ("unet", "class_embed_type", "timestep", "None"),
    ("unet", "down_block_types", ["DownBlock2D", "ResnetDownsampleBlock2D"], "DownBlock2D and AttnDownBlock2D"),
    ("unet", "up_block_types", ["UpBlock2D", "UpBlock2D"], "attention at the levels at which down_block_types has it"),
    ("unet", "up_block_types", ["AttnUpBlock2D", "SkipUpBlock2D"], "UpBlock2D and AttnUpBlock2D"),
    ("unet", "attention_head_dim", 8, "one head: null, or all of [16] channels"),
    ("unet", "attn_norm_num_groups", 2, "null or norm_num_groups"),
    ("unet", "block_out_channels", [8, 12], "multiples of the first"),
    ("unet", "block_out_channels", 8, "a list"),
    ("unet", "sample_size", [8, 16], "an integer, the height and width of square images"),
    ("unet", "out_channels", 3, "1, or 2 with a learned variance"),
    ("unet", "time_embedding_dim", 64, "null or 32"),
    ("unet", "layers_per_block", None, "an integer of at least 1"),
    ("unet", "dropout", "much", "a number"),
    ("unet", "something_new", 7, "null"),
    ("unet", "_class_name", "UNet2DConditionModel", "UNet2DModel"),
    ("scheduler", "_class_name", "PNDMScheduler", "DDPMScheduler and DDIMScheduler"),
    ("scheduler", "clip_sample", False, "True"),
    ("scheduler", "clip_sample_range", 2.0, "1.0"),
    ("scheduler", "thresholding", True, "False"),
    ("scheduler", "set_alpha_to_one", False, "True"),
    ("scheduler", "predict_epsilon", False, "True"),
    ("scheduler", "rescale_betas_zero_snr", True, "False"),
    ("scheduler", "beta_schedule", "laplace", "linear, scaled_linear, sigmoid, squaredcos_cap_v2"),
    ("scheduler", "prediction_type", "flow", "epsilon, sample, v_prediction"),
    ("scheduler", "variance_type", "learned", "fixed_small, fixed_large, learned_range, fixed_small_log"),
    ("scheduler", "trained_betas", [0.1, 0.2], "2, the number of trained_betas"),
]


@pytest.mark.parametrize(("part", "name", "value", "supported"), UNSUPPORTED)
def test_a_setting_that_cannot_be_expressed_is_named(part, name, value, supported, folder, tmp_path, command):
    file = "config.json" if part == "unet" else "scheduler_config.json"
    change(folder / part / file, **{name: value})
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    shown = f"num_train_timesteps={T}" if name == "trained_betas" else f"{name}={value!r}"
    assert f"{file} has {shown}, which is not supported; supported: {supported}\n" in err
    assert not (tmp_path / "out.ckpt").exists()


BROKEN: dict[str, tuple[Any, str]] = {
    "no_index": (lambda folder: (folder / "model_index.json").unlink(), "there is no .*model_index.json"),
    "no_weights": (
        lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").unlink(),
        f"there is neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin in ",
    ),
    "no_json": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "config.json is not JSON"),
    "a_list": (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "is not a configuration of diffusers"),
    "another_pipeline": (
        lambda folder: change(folder / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name='StableDiffusionPipeline', which is not supported; supported: DDPMPipeline and",
    ),
    "uneven_blocks": (
        lambda folder: change(folder / "unet" / "config.json", up_block_types=["UpBlock2D"]),
        "has 2 block_out_channels, 2 down_block_types and 1 up_block_types",
    ),
    "learned_without_channels": (
        lambda folder: change(folder / "scheduler" / "scheduler_config.json", variance_type="learned_range"),
        "the network's output has 1 times the images' channels and the variance is learned_range",
    ),
    "learned_by_ddim": (
        lambda folder: (
            change(folder / "unet" / "config.json", out_channels=2),
            change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        ),
        "is of a DDIMScheduler, which cannot read the network's learned variance",
    ),
    "impossible_betas": (
        lambda folder: change(folder / "scheduler" / "scheduler_config.json", beta_end=2.0),
        "every beta must lie in",
    ),
    "impossible_groups": (
        lambda folder: change(folder / "unet" / "config.json", norm_num_groups=5),
        "channels must be a multiple of groups, got 8 and 5",
    ),
    "damaged": (
        lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").write_bytes(b"nothing"),
        "safetensors is damaged, or holds more than weights",
    ),
    "a_weight_too_few": (lambda folder: reweigh(folder, {"conv_in.bias": None}), "they lack conv_in.bias"),
    "a_weight_too_many": (lambda folder: reweigh(folder, {"more": torch.ones(1)}), "they have more"),
    "another_shape": (
        lambda folder: reweigh(folder, {"conv_in.bias": torch.ones(3)}),
        r"conv_in.bias is \[3\], expected \[8\]",
    ),
}


def reweigh(folder: Path, changes: dict[str, Tensor | None]) -> None:
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path) | changes
    save_file({name: value for name, value in state.items() if value is not None}, path)


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_read_is_refused(name, folder, tmp_path, command):
    spoil, sentence = BROKEN[name]
    spoil(folder)
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert re.search(sentence, err), err
    assert not (tmp_path / "out.ckpt").exists()


def test_weights_that_are_a_program_are_not_run(folder, tmp_path, command):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"conv_in.bias": Path("code")}, folder / "unet" / f"{WEIGHTS}.bin")
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert f"{WEIGHTS}.bin is damaged, or holds more than weights" in err


@pytest.mark.parametrize("there", ["out.ckpt", "out.yaml"])
def test_import_writes_over_nothing(there, folder, tmp_path, command):
    (tmp_path / there).write_text("mine")
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert f"{tmp_path / there} exists already" in err
    assert (tmp_path / there).read_text() == "mine"


def test_import_wants_a_checkpoints_name_and_a_folder(folder, tmp_path, command):
    _, _, err = command("import", "--folder", folder, "--out", tmp_path / "out")
    assert "must be a file name that ends in .ckpt" in err
    _, _, err = command("import", "--folder", tmp_path / "nowhere", "--out", tmp_path / "out.ckpt")
    assert f"there is no folder {tmp_path / 'nowhere'}" in err


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def test_an_imported_model_is_sampled_from_and_fine_tuned_by_the_command_line(folder, tmp_path, command):
    start = weights(imported(folder, command))
    status, _, err = command("sample", "--ckpt", tmp_path / "imported.ckpt", "--n", "2", "--out", tmp_path / "samples")
    assert status == 0, err
    config = tiny_digits(tmp_path / "run")
    config["trainer"].update(max_steps=2, val_check_interval=1)
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if not each["class_path"].endswith(("Evaluation", "SampleGrid"))
    ]
    callback(config, "Checkpoints").update(every_n_steps=1, monitor=None)
    config["model"]["init_args"]["optimizer"]["init_args"].update(lr=1e-4)
    config["model"]["init_args"]["lr_scheduler"]["init_args"].update(start_factor=1.0)
    configs = ("--config", write_yaml(tmp_path / "c.yaml", config), "--config", tmp_path / "imported.yaml")
    ended = ddpm("fit", *configs, "--ckpt_path", tmp_path / "imported.ckpt")
    assert ended.returncode == 0, ended.stderr
    assert "not created with WeightAveraging" not in ended.stderr
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    for weight_set in ("state_dict", "current_model_state"):
        tuned = content[weight_set]
        moved = {name: (tuned[name] - value).abs().max().item() for name, value in start.items()}
        assert 0 < max(moved.values()) < 2.1e-4, weight_set  # two steps of Adam, each at most its learning rate
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert written["sampler"]["class_path"] == "lightning_ddpm.diffusion.Ancestral"
    status, _, err = command("fit", *configs, "--ckpt_path", tmp_path / "imported.ckpt")
    assert status == 2
    assert "already holds a run" in err
