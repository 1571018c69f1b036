"""Whatever ``export`` accepts, ``import`` reads, and both models generate the same images."""

import itertools
import json

import pytest
import torch
from helpers.diffusers_models import import_pipeline, sample_here, write_checkpoint
from helpers.tiny import same, weights

from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    Ancestral,
    Cosine,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    Heun,
    LearnedRange,
    Linear,
    Quadratic,
    Sigmoid,
    Velocity,
    ZeroTerminalSNR,
    quadratic_spacing,
    trailing_spacing,
)
from lightning_ddpm.models.checkpoint import load

SCHEDULES = [
    Linear(1, 0.3, 0.3),
    Linear(12),
    Linear(12, 0.2, 0.01),
    Quadratic(12),
    Sigmoid(2),
    Cosine(12),
    Cosine(3, offset=0.2),
    ExplicitBetas([0.3, 1e-12, 0.999999]),
    ExplicitBetas([0.1, 0.3, 1.0]),
]
ZERO_SNR = [ZeroTerminalSNR(Linear(12)), ZeroTerminalSNR(Cosine(2)), ZeroTerminalSNR(Sigmoid(5))]
SAMPLERS = [
    Ancestral(FixedSmall()),
    Ancestral(FixedLarge(), steps=1),
    Ancestral(LearnedRange(), steps=2, spacing=trailing_spacing),
    DDIM(steps=None),
    DDIM(steps=2, eta=0.7, spacing=quadratic_spacing),
    Heun(steps=2),
]
NETWORKS = [{}, {"outputs": 2}, {"attention": [], "dropout": 0.0}, {"classes": 3}, {"multipliers": [2, 2]}]


def list_combinations():
    """Yield every schedule with every parameterization, each with the next sampler and the next network."""
    pairs = itertools.product([*SCHEDULES, *ZERO_SNR], [Epsilon(), X0(), Velocity()])
    samplers, networks = itertools.cycle(SAMPLERS), itertools.cycle(NETWORKS)
    for schedule, parameterization in pairs:
        if schedule.alpha_bar_T or not isinstance(parameterization, Epsilon):
            yield schedule, parameterization, next(samplers), next(networks)


@pytest.mark.parametrize("part", range(4))
def test_what_is_exported_is_imported_to_equal_samples(part, tmp_path, command):
    exported = 0
    for index, (schedule, parameterization, sampler, network) in enumerate(list_combinations()):
        if index % 4 != part:
            continue
        folder = tmp_path / str(index)
        folder.mkdir()
        try:
            path = write_checkpoint(
                folder / "a.ckpt", network, schedule=schedule, parameterization=parameterization, sampler=sampler
            )
            model = load(path)
        except ValueError:
            continue  # this package has no such model, e.g. more steps than T
        status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", folder / "out")
        assert status in (0, 2), err
        if status == 2:
            assert not (folder / "out").exists()
            continue
        exported += 1
        other = import_pipeline(folder / "out", command)
        assert same(weights(model), weights(other))
        assert torch.equal(model.schedule.beta, other.schedule.beta)
        assert str(model.sampler) == str(other.sampler)
        assert torch.equal(sample_here(model), sample_here(other))
    assert exported >= 2


def test_zero_terminal_snr_survives(tmp_path, command):
    schedule = ZeroTerminalSNR(Linear(12))
    path = write_checkpoint(tmp_path / "a.ckpt", schedule=schedule, parameterization=Velocity())
    assert command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())["trained_betas"][-1] == 1.0
    assert import_pipeline(tmp_path / "out", command).schedule.alpha_bar_T == 0


@pytest.mark.parametrize("change", ["nan", "outputs"])
def test_what_import_would_refuse_is_not_exported(change, tmp_path, command):
    path = write_checkpoint(tmp_path / "a.ckpt", {"outputs": 3} if change == "outputs" else None)
    if change == "nan":
        content = torch.load(path, weights_only=True)
        content["state_dict"]["network.first.bias"][0] = torch.nan
        torch.save(content, path)
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 2
    assert ("are not finite" if change == "nan" else "has 3 times the images' channels") in err
    assert not (tmp_path / "out").exists()


def test_without_the_sampler_of_this_package_all_steps_are_made(tmp_path, command):
    path = write_checkpoint(tmp_path / "a.ckpt", sampler=DDIM(steps=2))
    arguments = ("--format", "diffusers", "--out", tmp_path / "out", "--variance", "fixed_large")
    assert command("export", "--ckpt", path, *arguments)[0] == 0
    assert str(import_pipeline(tmp_path / "out", command).sampler) == str(Ancestral(FixedLarge()))
