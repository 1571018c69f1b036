"""Every config is a complete experiment: its header describes it, it builds its model, and the small ones train."""

import functools
import io
import math
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import CONFIGS, REPOSITORY, read_yaml, write_yaml
from PIL import Image

from lightning_ddpm import callbacks, diffusion
from lightning_ddpm.commands import fit
from lightning_ddpm.metrics import Inception
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.networks import DiT, UNet
from lightning_ddpm.utils.random import make_generator

NAMES = [path.stem for path in CONFIGS]
FEATURES = ("digits_features", "mnist_features")
DIGITS = (
    "digits",
    "digits_features",
    "digits_conditional",
    "digits_classifier",
    "digits_edm",
    "digits_flow",
    "digits_dit",
    "digits_meanflow",
)
GUIDES = ("digits_classifier", "mnist_classifier", "cifar10_classifier")
GPU = [path.stem for path in CONFIGS if "GPU" in path.read_text().split("# hardware:")[1].splitlines()[0]]
IMAGENET = {"adm_64": 64, "jit_256": 256}
LARGE = {  # name and category: where the data are, flips, training steps
    ("celebahq256", None): ("celebahq", True, 500_000),
    ("lsun256", "church"): ("church_outdoor", True, 1_200_000),
    ("lsun256", "bedroom"): ("bedroom", True, 2_400_000),
    ("lsun256", "cat"): ("cat", False, 1_800_000),
}


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Return a function that builds a config's trainer, model and data as the command line does, without weights."""
    built = []

    class Built(fit.DDPMCLI):
        def _run_subcommand(self, subcommand):
            built.append(self)

    def build_empty(kind):
        original_init = kind.__init__

        @functools.wraps(original_init)
        def init_on_meta_device(self, *args, **kwargs):
            with torch.device("meta"):
                original_init(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", init_on_meta_device)

    monkeypatch.setattr(fit, "DDPMCLI", Built)
    build_empty(UNet)
    build_empty(DiT)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def call(name, *options):
        if name in IMAGENET:
            options = (*options, "--data.root", str(make_imagenet(tmp_path / name, IMAGENET[name])))
        if name == "arrays":
            options = (*options, "--data.root", str(make_arrays(tmp_path / "arrays")))
        overrides = ("--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path))
        fit.run(["fit", "--config", str(config(name)), *options, *overrides])
        return built[-1]

    return call


def make_imagenet(root, side):
    """Return a folder with a square image in each of a thousand classes."""
    if not root.exists():
        content = io.BytesIO()
        Image.new("RGB", (side, side)).save(content, "png")
        for label in range(1000):
            (root / f"n{label:08}").mkdir(parents=True)
            (root / f"n{label:08}" / "image.png").write_bytes(content.getvalue())
    return root


def make_arrays(root):
    """Return a folder of two arrays of five channels."""
    root.mkdir(exist_ok=True)
    for index in range(2):
        np.save(root / f"{index}.npy", np.random.default_rng(index).normal(size=(5, 24, 20)).astype(np.float32))
    return root


def config(name):
    return REPOSITORY / "configs" / f"{name}.yaml"


def read_header(name):
    return config(name).read_text().split("\nseed_everything")[0].splitlines()


def read_category_options(name, category):
    """Return the options that the header gives for a category of the data."""
    (line,) = [line for line in read_header(name) if line.startswith(f"#            {category}:")]
    return shlex.split(line[line.index("--") :]) if ": --" in " ".join(line.split()) else []


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_all_documented_configs_exist():
    documented = {"digits", "mnist", "fashion_mnist", "cifar10", "cifar10_fast", "image_folder", "arrays"}
    documented |= {"digits_edm", "digits_flow", "digits_meanflow"}
    documented |= {f"{name}_conditional" for name in ("digits", "mnist", "fashion_mnist", "cifar10")}
    documented |= {
        *FEATURES,
        *GUIDES,
        *(name for name, _ in LARGE),
        *IMAGENET,
        "digits_dit",
        "cifar10_dit",
        "cifar10_edm",
    }
    documented |= {"superresolution", "paired_folders"}
    assert documented == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_header_gives_command_hardware_time_and_expected_result(name):
    header = read_header(name)
    assert all(line.startswith("#") for line in header)
    assert header[0].endswith(".")
    for key in ("command:", "hardware:", "time:", "expect:"):
        assert any(line.startswith(f"# {key}  ") for line in header), f"no '# {key}' in {name}.yaml's header"
    command = next(line for line in header if line.startswith("# command:"))
    assert f"python -m lightning_ddpm fit --config configs/{name}.yaml" in command


@pytest.mark.parametrize("name", NAMES)
def test_a_config_sets_the_seed_and_a_run_folder_of_its_own_name(name):
    content = read_yaml(config(name))
    assert content["trainer"]["default_root_dir"] == f"checkpoints/{name}"
    assert isinstance(content["seed_everything"], int)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_its_model_and_data_without_the_data(name, build, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a folder without data
    cli = build(name)
    network = cli.model.network
    assert (network.channels, network.size) == (cli.datamodule.channels, cli.datamodule.size)
    others = dict.fromkeys(FEATURES, ImageClassifier) | dict.fromkeys(GUIDES, NoisyClassifier)
    assert isinstance(cli.model, others.get(name, DDPM))
    classes = 1000 if name in IMAGENET else (10 if name in others or name.endswith("_conditional") else 0)
    assert getattr(network, "classes", 0) == classes
    optimizer = cli.model.configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["lr"] > 0
    if isinstance(cli.model, DDPM):
        assert cli.model.sampler.nfe(cli.model.schedule.T) <= cli.model.schedule.T
        assert cli.model.schedule.alpha_bar_T < 2e-4  # x_T has almost no signal
        assert any(isinstance(each, callbacks.EMA) for each in cli.trainer.callbacks)


@pytest.mark.parametrize("name", NAMES)
def test_the_monitored_metric_is_logged(name, build):
    cli = build(name)
    keeper = next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.Checkpoints))
    evaluations = [each for each in cli.trainer.callbacks if isinstance(each, callbacks.Evaluation)]
    pairs = {"val/psnr" for each in cli.trainer.callbacks if isinstance(each, callbacks.PairQuality)}
    assert keeper.monitor in {None, "val/loss", *(f"val/{each.extractor.metric}" for each in evaluations), *pairs}
    for each in evaluations:
        assert each.interval is None or each.interval.steps <= cli.trainer.max_steps


def check_ho_recipe(cli, flips):
    """Check what Ho et al. do alike on all datasets (appendix B)."""
    model, data = cli.model, cli.datamodule
    assert torch.equal(model.schedule.beta[1:], torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert isinstance(model.sampler, diffusion.Ancestral)
    assert isinstance(model.sampler.variance, diffusion.FixedLarge)
    assert model.sampler.steps is None
    assert cli.trainer.gradient_clip_val == 1.0
    assert cli.trainer.gradient_clip_algorithm in (None, "norm")
    assert cli.trainer.accumulate_grad_batches == 1
    assert next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.EMA)).decay == 0.9999
    assert data.flip is flips
    evaluation = next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.Evaluation))
    assert isinstance(evaluation.extractor, Inception)


def test_cifar10_ends_with_the_published_evaluation(build):
    cheap, full = (each for each in build("cifar10").trainer.callbacks if isinstance(each, callbacks.Evaluation))
    assert (cheap.request.n, cheap.request.sampler.nfe(1000), cheap.interval.steps) == (5000, 100, 20_000)
    assert (full.request.n, full.request.sampler, full.interval) == (50_000, None, None)
    assert all(isinstance(each.extractor, Inception) for each in (cheap, full))


def record_learning_rates(cli):
    """Return the optimizer, and the learning rate at every step of the warm-up."""
    configured = cli.model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(5002):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return optimizer, rates


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
def test_cifar10_follows_ho_et_al(build):
    cli = build("cifar10")
    check_ho_recipe(cli, flips=True)
    assert count_parameters(cli.model) == 35_746_307
    assert (cli.model.network.channels, cli.model.network.size) == (3, 32)
    assert {layer.p for layer in cli.model.modules() if isinstance(layer, torch.nn.Dropout)} == {0.1}
    assert (cli.datamodule.batch_size, cli.trainer.max_steps) == (128, 800_000)
    optimizer, rates = record_learning_rates(cli)
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    assert optimizer.defaults["weight_decay"] == 0
    assert rates[0] == pytest.approx(2e-4 / 5000)
    assert rates[2500] == pytest.approx(1e-4, rel=1e-3)
    assert rates[5000] == rates[5001] == pytest.approx(2e-4)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
@pytest.mark.parametrize(("name", "category"), LARGE)
def test_the_256x256_configs_follow_ho_et_al(name, category, build):
    data, flips, steps = LARGE[name, category]
    cli = build(name, *(read_category_options(name, category) if category else []))
    check_ho_recipe(cli, flips)
    assert count_parameters(cli.model) == 113_673_219
    assert {layer.p for layer in cli.model.modules() if isinstance(layer, torch.nn.Dropout)} == {0.0}
    assert cli.datamodule.batch_size * 8 == 64  # the header's eight devices
    assert "--trainer.devices 8" in config(name).read_text()
    assert cli.trainer.max_steps == steps
    assert data in {getattr(cli.datamodule.source, "category", None), cli.datamodule.root.name}
    _, rates = record_learning_rates(cli)
    assert max(rates) == pytest.approx(2e-5)


def test_the_fast_recipe_has_the_network_of_ho_et_al_and_the_ema_half_life_of_its_header(build):
    cli = build("cifar10_fast")
    assert count_parameters(cli.model) == 35_746_307
    images = cli.trainer.max_steps * cli.datamodule.batch_size
    assert images == 12.8e6
    average = next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.EMA))
    half_life = math.log(0.5) / math.log(average.decay) * cli.datamodule.batch_size
    assert half_life == pytest.approx(500_000, rel=0.02)


def test_adm_64_follows_dhariwal_and_nichol(build):
    cli = build("adm_64")
    model, data = cli.model, cli.datamodule
    assert count_parameters(model.network) == 295_904_454 + 768  # theirs, and a vector for no class
    assert read_yaml(config("adm_64"))["data"]["global_batch_size"] == 2048
    assert (cli.trainer.max_steps, data.flip) == (540_000, True)
    assert isinstance(model.objective, diffusion.Hybrid)
    assert isinstance(model.sampler.variance, diffusion.LearnedRange)
    assert model.sampler.nfe(1000) == 250
    optimizer = model.configure_optimizers()["optimizer"]
    assert (optimizer.param_groups[0]["lr"], optimizer.defaults["weight_decay"]) == (3e-4, 0)
    assert next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.EMA)).decay == 0.9999


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
def test_cifar10_edm_follows_karras_et_al(build):
    cli = build("cifar10_edm")
    model, data = cli.model, cli.datamodule
    assert count_parameters(model.network) == 55_733_891  # of training.networks.SongUNet in NVlabs/edm, 55.7 million
    assert isinstance(model.clipping, diffusion.NoClipping)
    assert {layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)} == {0.13}
    assert cli.trainer.max_steps * read_yaml(config("cifar10_edm"))["data"]["global_batch_size"] == 200_000_000
    average = next(each for each in cli.trainer.callbacks if isinstance(each, callbacks.EMA))
    assert math.log(0.5) / math.log(average.decay) * 512 == pytest.approx(500_000, rel=1e-3)
    assert (model.augmentations[0].probability, data.flip) == (0.12, False)
    assert (model.timesteps.mean, model.timesteps.std, model.parameterization.sigma_data) == (-1.2, 1.2, 0.5)
    assert model.sampler.nfe(1000) == 35
    optimizer, rates = record_learning_rates(cli)
    assert (type(optimizer), optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == (
        torch.optim.Adam,
        (0.9, 0.999),
        0,
    )
    assert optimizer.defaults["eps"] * 3 * 32 * 32 == pytest.approx(1e-8, rel=0.01)
    assert rates[5000] == pytest.approx(1e-3 * 5000 * 512 / 10e6, rel=1e-3)
    assert cli.trainer.gradient_clip_val is None


def test_jit_256_follows_li_and_he(build):
    cli = build("jit_256")
    model = cli.model
    assert count_parameters(model.network) == 131_123_712
    assert isinstance(model.schedule, diffusion.RectifiedFlow)
    assert (model.timesteps.mean, model.timesteps.std, model.objective.weight.limit) == (0.8, 0.8, 0.05)
    assert model.sampler.nfe(1000) == 99
    assert isinstance(model.clipping, diffusion.NoClipping)
    final = [each for each in cli.trainer.callbacks if isinstance(each, callbacks.Evaluation)][-1]
    assert (final.request.guidance.scale, tuple(final.request.guidance.interval)) == (2.9, (1, 900))
    optimizer = model.configure_optimizers()["optimizer"]
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (2e-4, (0.9, 0.95))
    images = read_yaml(config("jit_256"))["data"]["global_batch_size"] * cli.trainer.max_steps
    assert images / 1_281_167 == pytest.approx(600, rel=1e-3)


def read_float32_options(name):
    """Return the options that the header gives for float32 on a CPU."""
    (line,) = [line for line in read_header(name) if line.strip("# ").startswith("in float32, on a CPU")]
    return shlex.split(line[line.index("--") :])


def test_thirteen_configs_are_for_gpus():
    assert len(GPU) == 13, GPU


@pytest.mark.parametrize("name", GPU)
def test_a_config_for_gpus_trains_compiled_in_bfloat16_with_channels_last_and_in_float32_on_request(name, build):
    cli = build(name)
    found = {type(each): each for each in cli.trainer.callbacks}
    assert cli.trainer.precision == "bf16-mixed"
    assert found[callbacks.Compile].backend == "inductor"
    assert callbacks.ChannelsLast in found
    assert cli.datamodule.drop_last, "every batch has the size that is compiled"
    cli = build(name, *read_float32_options(name))
    assert cli.trainer.precision == "32-true"
    (compiled,) = [each for each in cli.trainer.callbacks if isinstance(each, callbacks.Compile)]
    assert compiled.backend == "eager", "which needs no compiler"


def check_training(command, path, folder, *options):
    """Train for two steps on two images each, otherwise by the config, and check that the loss is finite."""
    content = read_yaml(path)
    kept = [each for each in content["trainer"]["callbacks"] if "Inception" not in str(each)]
    content["trainer"].update(callbacks=kept, accelerator="cpu", log_every_n_steps=1, num_sanity_val_steps=1)
    content["trainer"].pop("limit_val_batches", None)
    run, changed = folder / "run", write_yaml(folder / "config.yaml", content)
    tiny = ("--trainer.max_steps", "2", "--data.batch_size", "2", "--data.num_workers", "0")
    status, out, err = command("fit", "--config", changed, "--trainer.default_root_dir", run, *tiny, *options)
    assert status == 0, err
    assert "step 2 of 2: train/loss" in out
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    loss = float(out.split("train/loss ")[1].split(",")[0].split(";")[0])
    assert math.isfinite(loss)


@pytest.mark.parametrize("name", GUIDES)
def test_a_noisy_classifier_has_the_schedule_of_the_models_that_it_guides(name, build):
    schedule = build(name).model.schedule.alpha_bar
    data = name.removesuffix("_classifier")
    for guided in (data, f"{data}_conditional"):
        assert torch.equal(build(guided).model.schedule.alpha_bar, schedule)


@pytest.mark.parametrize("name", ["digits_conditional", "digits_classifier"])
def test_the_class_names_of_the_data_reach_the_model(name, build):
    assert build(name).model.class_names == list("0123456789")


@pytest.mark.parametrize("name", DIGITS)
def test_the_digits_configs_train(name, command, tmp_path):
    check_training(command, config(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, "MNIST") for name in ("mnist", "mnist_conditional", "mnist_classifier", "mnist_features")),
        *((name, "FashionMNIST") for name in ("fashion_mnist", "fashion_mnist_conditional")),
    ],
)
def test_the_mnist_configs_train(name, data, command, tmp_path):
    root = os.environ.get("LIGHTNING_DDPM_TEST_DATA")
    if not root or not (Path(root) / data).is_dir():
        pytest.skip(f"no folder {data} where LIGHTNING_DDPM_TEST_DATA points")
    check_training(command, config(name), tmp_path, "--data.root", root)


@pytest.mark.slow
def test_a_folder_of_images_trains(command, tmp_path):
    for index in range(8):
        noise = torch.randint(
            0, 256, (40, 48, 3), generator=make_generator("cpu", "test", index=index), dtype=torch.uint8
        )
        folder = tmp_path / "images" / ("cats" if index % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.numpy()).save(folder / f"{index}.png")
    small = ("--data.root", tmp_path / "images", "--data.source.size", "32", "--data.source.holdout", "0.25")
    options = read_float32_options("image_folder")
    check_training(command, config("image_folder"), tmp_path, *small, "--model.network.width", "32", *options)
