"""Compile: the same results and checkpoint as without it, and one graph for all batch sizes."""

import json
import shutil
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY, ddpm, run
from helpers.conditions import DescribedDigits, make_network
from helpers.tiny import quiet_trainer, same, tiny_model, tiny_network, weights
from PIL import Image
from torch._dynamo.utils import counters

from lightning_ddpm.callbacks import EMA, Compile, SampleGrid
from lightning_ddpm.commands import options as model_options
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import FlowVelocity, MeanFlow, MeanFlowSampler, RectifiedFlow
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.compile import compile_in_place, get_memory_format
from lightning_ddpm.utils.errors import UserError

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def fit(folder: Path, compile_: Compile | None):
    """Train three steps with a grid after each and a validation, in four batch sizes; return the weights."""
    callbacks = [EMA(0.9), SampleGrid(n=20, every_n_steps=1), *([compile_] if compile_ else [])]
    model = tiny_model()
    trainer = quiet_trainer(folder, callbacks=callbacks, max_steps=3, val_check_interval=3, limit_val_batches=1.0)
    trainer.fit(model, ImageDataModule(Digits(), batch_size=40))
    trainer.save_checkpoint(folder / "last.ckpt")
    assert model.network._compiled_call_impl is None, "compiled after the run"
    return torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]


def test_one_graph_serves_all_batch_sizes_and_weights_keep_values_and_names(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", None)
    torch.compiler.reset()
    counters.clear()
    compiled = fit(tmp_path / "compiled", Compile(backend="eager"))
    assert counters["stats"]["unique_graphs"] == 2, "one with gradients, one without"
    assert not counters["graph_break"]
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value)


def test_a_network_that_is_given_the_length_of_a_step_is_compiled(tmp_path: Path) -> None:
    found = []
    for more in ([], [Compile(backend="eager")]):
        torch.compiler.reset()
        flow = {"schedule": RectifiedFlow(100), "parameterization": FlowVelocity(), "objective": MeanFlow()}
        model = tiny_model(network=tiny_network(intervals=True, classes=10), sampler=MeanFlowSampler(2), **flow)
        grid = SampleGrid(n=10, every_n_steps=2)
        trainer = quiet_trainer(tmp_path, callbacks=[grid, *more], max_steps=2, val_check_interval=2)
        trainer.fit(model, ImageDataModule(Digits(), batch_size=40))
        found.append(weights(model))
    first, second = found
    assert not same(first, weights(tiny_model(network=tiny_network(intervals=True, classes=10))))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
@pytest.mark.parametrize("backend", ["eager"])
def test_a_network_with_conditions_of_every_kind_is_compiled(backend: str, tmp_path: Path) -> None:
    found = []
    for more in ([], [Compile(backend=backend)]):
        torch.compiler.reset()
        counters.clear()
        model = tiny_model(network=make_network("UNet"), label_dropout=0.5)
        callbacks = [EMA(0.9), SampleGrid(n=20, every_n_steps=2), *more]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=3, val_check_interval=2, limit_val_batches=1.0)
        trainer.fit(model, ImageDataModule(DescribedDigits(), batch_size=40))
        found.append(weights(model))
        if more:
            assert counters["stats"]["unique_graphs"] > 0
            assert not counters["graph_break"]
    first, second = found
    assert not same(first, weights(tiny_model(network=make_network("UNet"))))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_counting_network_evaluations_compiles_no_further_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(model_options, "compile_in_place", partial(compile_in_place, backend="eager"))
    model = tiny_model()
    options, fabric = Namespace(compile=True), Namespace(device=torch.device("cpu"))
    spent = model_options.place_model(model, options, fabric)  # type: ignore[arg-type]
    images = [pixels for _, pixels in generate_batches(model, SampleRequest(56, batch_size=20))]
    assert spent == [20, 20, 20, 20, 16, 16]
    assert counters["stats"]["unique_graphs"] == 1
    plain = [pixels for _, pixels in generate_batches(tiny_model(), SampleRequest(56, batch_size=20))]
    assert (torch.cat(images).int() - torch.cat(plain).int()).abs().max() <= 1


def test_a_network_that_is_compiled_for_sampling_has_channels_last_unless_on_the_cpu() -> None:
    for device, layout in (("meta", torch.channels_last), ("cpu", torch.contiguous_format)):
        model, options = tiny_model(), Namespace(compile=True)
        model_options.place_model(model, options, Namespace(device=torch.device(device)))  # type: ignore[arg-type]
        assert get_memory_format(model.network) is layout, device


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_compiled_sampling_gives_the_same_images(tmp_path: Path) -> None:
    """With torch's own compiler, inductor."""
    for name, options in (("plain", ()), ("compiled", ("--compile",))):
        options = ("--n", 6, "--batch_size", 4, "--steps", 3, "--out", tmp_path / name, *options)
        ended = ddpm("sample", "--ckpt", CKPT, *options, "--accelerator", "cpu")
        assert ended.returncode == 0, ended.stderr
        assert "3 network evaluations each" in ended.stdout
    for index in range(6):
        plain, compiled = (
            np.asarray(Image.open(tmp_path / name / f"{index:06d}.png")) for name in ("plain", "compiled")
        )
        assert np.abs(plain.astype(int) - compiled).max() <= 1
    ended = ddpm("sample", "--ckpt", CKPT, "--n", 6, "--batch_size", 4, "--steps", 3, "--out", tmp_path / "compiled")
    assert ended.returncode == 2
    assert "images of another set: their network is compiled, requested is None" in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_evaluate_records_compilation_and_computes_the_same_metric(tmp_path: Path) -> None:
    found = {}
    for name, options in (("plain", ()), ("compiled", ("--compile",))):
        metric = ("--extractor", "DigitsFeatures", "--reference", "Digits", "--accelerator", "cpu")
        options = ("--n", 32, "--batch_size", 20, "--steps", 3, "--out", tmp_path / f"{name}.json", *options)
        ended = ddpm("evaluate", "--ckpt", CKPT, *metric, *options)
        assert ended.returncode == 0, ended.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["compiled"]["images"] == found["plain"]["images"] | {"network": "compiled"}
    plain, compiled = (found[name]["metrics"]["fd_digits"]["value"] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=0.01)


@pytest.mark.slow
def test_a_missing_compiler_is_reported(tmp_path: Path) -> None:
    options = ("--n", 1, "--steps", 1, "--out", tmp_path / "samples", "--compile", "--accelerator", "cpu")
    environment = {"CXX": tmp_path / "g++", "TORCHINDUCTOR_CACHE_DIR": tmp_path / "cache"}  # which torch's import reads
    ended = run(sys.executable, "-m", "lightning_ddpm", "sample", "--ckpt", CKPT, *options, **environment)
    assert ended.returncode == 2
    assert "error: torch.compile cannot compile the network here: No working C++ compiler found" in ended.stderr
    assert "or train without compilation" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match=r"torch.compile has no backend 'fast'; it has .*inductor"):
        Compile(backend="fast")
