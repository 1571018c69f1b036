"""Timestep samplers: their probabilities and weights, and the history of losses that all ranks share."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from torch import Tensor

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    Linear,
    LossAwareTimesteps,
    UncertaintyWeighted,
    UniformTimesteps,
)
from lightning_ddpm.utils.errors import UserError


def gather_one_rank(values: Tensor) -> Tensor:
    return values


def test_uniform_timesteps_have_equal_probability_and_weight_1() -> None:
    timesteps = UniformTimesteps()
    timesteps.setup(Linear(7))
    t, weights = timesteps.sample(7000, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=8)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 4 * 1000**0.5
    assert (weights == 1).all()
    assert not timesteps.state_dict()


def make_full_history(T: int = 5) -> LossAwareTimesteps:
    timesteps = LossAwareTimesteps(history=2)
    timesteps.setup(Linear(T))
    t = torch.arange(1, T + 1).repeat(2)
    timesteps.update(t, t.float(), gather_one_rank)
    return timesteps


def test_loss_aware_timesteps_are_uniform_until_the_history_is_full_then_follow_the_rms() -> None:
    timesteps = LossAwareTimesteps(history=2, uniform_share=0.1)
    timesteps.setup(Linear(3))
    for t, loss in [(1, 3.0), (1, 4.0), (2, 0.0), (2, 5.0), (3, 1.0)]:
        timesteps.update(torch.tensor([t]), torch.tensor([loss]), gather_one_rank)
        assert timesteps.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    timesteps.update(torch.tensor([3]), torch.tensor([1.0]), gather_one_rank)
    rms = torch.tensor([(25 / 2) ** 0.5, (25 / 2) ** 0.5, 1.0])
    torch.testing.assert_close(timesteps.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3)
    timesteps.update(torch.tensor([3]), torch.tensor([9.0]), gather_one_rank)  # replaces the oldest
    assert sorted(timesteps.losses[2].tolist()) == [1.0, 9.0]


def test_loss_aware_weights_make_the_estimate_unbiased() -> None:
    timesteps = make_full_history()
    t, weights = timesteps.sample(200_000, torch.Generator().manual_seed(0))
    frequency = torch.bincount(t, minlength=6)[1:] / len(t)
    torch.testing.assert_close(frequency, timesteps.probabilities(), rtol=0, atol=4 * 0.5 / 200_000**0.5)
    losses = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    estimates = weights * losses[t]
    assert estimates.mean().item() == pytest.approx(3, abs=4 * estimates.std().item() / 200_000**0.5)


def test_loss_aware_timesteps_reduce_the_variance_of_the_estimate() -> None:
    timesteps = make_full_history()
    t, weights = timesteps.sample(10_000, torch.Generator().manual_seed(0))
    uniform = torch.randint(1, 6, (10_000,), generator=torch.Generator().manual_seed(0))
    assert (weights * t).var() < 0.01 * uniform.float().var()  # the losses are proportional to t, as in the history


def test_a_batch_may_contain_a_t_several_times() -> None:
    timesteps = LossAwareTimesteps(history=3)
    timesteps.setup(Linear(2))
    timesteps.update(torch.tensor([1, 2, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]), gather_one_rank)
    assert timesteps.losses.tolist() == [[1, 3, 4], [2, 0, 0]]
    assert timesteps.counts.tolist() == [3, 1]


def test_all_ranks_share_their_losses() -> None:
    ranks = [(torch.tensor([1, 2]), torch.tensor([1.0, 2.0])), (torch.tensor([2, 3]), torch.tensor([5.0, 6.0]))]
    states = []
    for t, losses in ranks:
        timesteps = LossAwareTimesteps(history=2)
        timesteps.setup(Linear(3))
        gathered = {torch.long: torch.stack([r[0] for r in ranks]), torch.float32: torch.stack([r[1] for r in ranks])}
        timesteps.update(t, losses, lambda mine, gathered=gathered: gathered[mine.dtype])
        states.append(timesteps.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["counts"].tolist() == [1, 2, 1]


def test_invalid_loss_aware_settings_are_refused() -> None:
    for arguments in ({"history": 0}, {"uniform_share": 0.0}, {"uniform_share": 1.5}):
        with pytest.raises(UserError, match="LossAwareTimesteps needs history >= 1"):
            LossAwareTimesteps(**arguments)


def test_losses_that_are_no_sizes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    model = tiny_model(timesteps=LossAwareTimesteps(), objective=UncertaintyWeighted())  # a checkpoint may have both
    with pytest.raises(UserError, match="those of UncertaintyWeighted have one size, or are negative"):
        quiet_trainer(tmp_path, max_steps=1).fit(model, ImageDataModule(Digits(), batch_size=8))
    assert model.timesteps.counts.sum() == 0
