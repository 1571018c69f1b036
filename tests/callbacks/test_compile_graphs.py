"""Compile as on a GPU: what convolutions receive, which sizes are known, and programs that overwrite their results."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import compile_backends
from helpers.tiny import TINY, quiet_trainer, tiny_model, tiny_network
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from lightning_ddpm.callbacks import EMA, BitsPerDim, ChannelsLast, Compile, NonFinite, SampleGrid
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    Ancestral,
    ClassifierFree,
    DPMSolverPP,
    Epsilon,
    EulerMaruyama,
    FixedLarge,
    Heun,
    LearnedRange,
    Parameterization,
    PredictorCorrector,
    Sampler,
    Velocity,
    elbos,
    invert,
)
from lightning_ddpm.diffusion.samplers.ode import AdaptiveODE, flow_log_likelihood, hutchinson_divergence
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils import compile as compilation
from lightning_ddpm.utils.random import ImageNoise

SAMPLERS = [
    *(Ancestral(FixedLarge(), 5), Ancestral(LearnedRange(), 5), DDIM(5), DDIM(5, eta=1.0), DPMSolverPP(5), Heun(5)),
    *(DPMSolverPP(5, eta=1.0), EulerMaruyama(5), PredictorCorrector(EulerMaruyama(5)), AdaptiveODE(1e-2)),
]


def fit(folder: Path, *callbacks: Callback, accumulate: int = 1, **more: Any) -> dict[str, Tensor]:
    """Train four steps with everything that calls the network, and return the raw and the averaged weights."""
    found = [*callbacks, EMA(0.5), NonFinite(), SampleGrid(n=6, every_n_steps=2), BitsPerDim(n=4, batch_size=4)]
    # with a large eps, rounding errors of zero gradients do not become steps
    model = tiny_model(
        network=tiny_network(dropout=0.0),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2, eps=1e-2, fused=True),
    )
    settings = {"max_steps": 4, "val_check_interval": 2 * accumulate, "limit_val_batches": 1} | more
    trainer = quiet_trainer(folder, callbacks=found, accumulate_grad_batches=accumulate, **settings)
    trainer.fit(model, ImageDataModule(Digits(), batch_size=16))
    trainer.save_checkpoint(folder / "last.ckpt")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return content["state_dict"] | {f"raw.{name}": value for name, value in content["current_model_state"].items()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_training_keeps_nothing_that_the_next_step_overwrites(tmp_path: Path) -> None:
    graphs = Compile(backend="overwriting", mode="reduce-overhead")
    assert_close(fit(tmp_path / "plain"), fit(tmp_path / "graphs", graphs))


@pytest.mark.slow
def test_accumulated_gradients_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Compile(backend="overwriting", mode="reduce-overhead")
    plain = fit(tmp_path / "plain", accumulate=2)
    assert_close(plain, fit(tmp_path / "graphs", graphs, accumulate=2))
    monkeypatch.setattr("lightning_ddpm.callbacks.compile.is_accumulating", lambda trainer: False)
    with pytest.raises(AssertionError, match="not close"):  # without Compile's copy they would be
        assert_close(plain, fit(tmp_path / "wrong", graphs, accumulate=2))


@pytest.fixture(scope="module")
def models() -> tuple[DDPM, DDPM]:
    """Return a model with a variance and classes, and the same with programs that overwrite their results."""
    torch.compiler.reset()
    plain, graphs = (tiny_model(network=tiny_network(outputs=2, classes=10)) for _ in range(2))
    compilation.compile_in_place(graphs.network, "overwriting", "reduce-overhead")
    return plain.eval(), graphs.eval()


@torch.no_grad()
def sample(model: DDPM, sampler: Sampler, parameterization: Parameterization) -> Tensor:
    """Sample without clipping, where predictions may be the network's output itself."""
    model.parameterization = parameterization
    x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return sampler.sample(model.denoiser.without_clipping(), x_T, ImageNoise(0, 0, 3))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_keeps_no_output_that_the_next_call_overwrites(models: tuple[DDPM, DDPM], sampler: Sampler) -> None:
    for parameterization in (Epsilon(), X0(), Velocity()):
        plain, graphs = (sample(each, sampler, parameterization) for each in models)
        torch.testing.assert_close(plain, graphs, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_an_output_would_be_overwritten(models: tuple[DDPM, DDPM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the copy in ``compile_in_place`` the test above fails."""
    network, x, t = models[1].network, torch.ones(3, 1, 8, 8), torch.ones(3, dtype=torch.long)
    kept = network(x, t)
    assert not torch.equal(network(2 * x, t), kept)
    assert kept.isfinite().all()
    monkeypatch.setattr(compilation, "uses_graphs", lambda mode: False)
    kept = network(x, t)
    network(2 * x, t)
    assert kept.isnan().all()
    assert sample(models[1], DPMSolverPP(5), X0()).isnan().any()


@pytest.mark.slow
@torch.no_grad()
def test_guidance_inversion_and_likelihoods_keep_no_output(models: tuple[DDPM, DDPM]) -> None:
    found = []
    for model in models:
        model.parameterization = Epsilon()
        free = model.denoiser.without_clipping()
        x = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
        guided = SampleRequest(3, sampler=Heun(4), guidance=ClassifierFree(2.0, (5, 15)), labels=[1, 2])
        noise = ImageNoise(0, 0, 3)
        values = [model.generate(guided, 0, 3).float(), invert(free, x, 4)]
        values += [each.total for each in elbos([model.denoiser, free], LearnedRange(), x, noise)]
        values.append(flow_log_likelihood(free, x, hutchinson_divergence(x.sign()), tolerance=1e-1))
        found.append(values)
    for plain, graphs in zip(*found, strict=True):
        torch.testing.assert_close(plain, graphs, rtol=1e-3, atol=1.01 if plain.ndim == 4 and plain.max() > 9 else 1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_cuda_graphs_train_as_the_network_itself(accumulate: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate": accumulate, "accelerator": "gpu"}
    graphs = [Compile(mode="reduce-overhead"), ChannelsLast()]
    plain = fit(tmp_path / "plain", **settings)
    for name, value in fit(tmp_path / "graphs", *graphs, **settings).items():
        torch.testing.assert_close(value, plain[name], rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_sample_the_images_of_the_network_itself() -> None:
    found = []
    for compiled in (False, True):
        model = tiny_model().to("cuda").eval()
        if compiled:
            compilation.compile_in_place(model.network, mode="reduce-overhead")
        with torch.no_grad():
            request = SampleRequest(12, sampler=DPMSolverPP(5))
            found.append(torch.cat([model.generate(request, start, start + 4) for start in (0, 4, 8)]).int())
    assert (found[0] - found[1]).abs().max() <= 2, "TF32 in convolutions"


@pytest.fixture(scope="module")
def recorded() -> dict[bool, list[tuple[Any, ...]]]:
    """Return what convolutions received in training and in sampling of two batches, with and without ChannelsLast."""
    found = {}
    for last in (True, False):
        torch.compiler.reset()
        compile_backends.convolutions.clear()
        model = tiny_model(network=UNet(**TINY | {"channels": 3, "multipliers": (1,), "attention": ()}))
        for each in [Compile(backend="recording"), *([ChannelsLast()] if last else [])]:
            each.setup(Trainer(logger=False, accelerator="cpu"), model, "fit")
        model.network(torch.ones(16, 3, 8, 8), torch.ones(16)).sum().backward()
        with torch.no_grad():
            for n in (6, 4):
                model.network(torch.ones(n, 3, 8, 8), torch.ones(1).expand(n))
        found[last] = list(compile_backends.convolutions)
    return found


def is_last(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether channels are adjacent, or no layout can be told from this shape."""
    return shape[2] == shape[3] == 1 or (stride[1], stride[3]) == (1, shape[1])


@pytest.mark.slow
def test_all_convolutions_are_compiled_with_channels_last(recorded: dict[bool, list[tuple[Any, ...]]]) -> None:
    assert len(recorded[True]) > 10
    for _, weight, result in recorded[True]:
        assert is_last(*weight)
        assert is_last(*result)
    (first, *_), *_ = recorded[True]
    assert first[0][1:] == (3, 8, 8)
    assert is_last(*first), "the layout of later images is the compiler's choice"
    assert not any(is_last(*result) for _, _, result in recorded[False])


def test_training_has_a_known_batch_size_and_sampling_any(recorded: dict[bool, list[tuple[Any, ...]]]) -> None:
    sizes = [image[0][0] for image, _, _ in recorded[True]]
    known = [each for each in sizes if isinstance(each, int)]
    assert set(known) == {16}
    assert len(known) == len(sizes) / 2, "the other half has a symbol for it"
