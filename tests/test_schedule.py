"""Noise schedules: their values, their limits, and that no cast ever touches them."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_ddpm.diffusion import Cosine, Linear, NoiseSchedule, Quadratic, Sigmoid
from lightning_ddpm.errors import UserError

SCHEDULES = [Linear, Quadratic, Sigmoid, Cosine]
TABLES = ["beta", "alpha_bar", "signal", "noise"]


class Given(NoiseSchedule):
    """A schedule of these very betas."""

    def __init__(self, *beta: float) -> None:
        self.values = beta
        super().__init__(len(beta))

    def betas(self, steps: int) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


def tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    return {name: getattr(schedule, name).clone() for name in TABLES}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_tables_are_float64_and_run_from_0_to_T(kind: type[NoiseSchedule]) -> None:
    schedule = kind(50)
    assert schedule.T == 50
    for table in tables(schedule).values():
        assert table.dtype == torch.float64
        assert table.shape == (51,)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_at_t_0_there_is_data_and_no_noise(kind: type[NoiseSchedule]) -> None:
    schedule = kind(50)
    assert schedule.alpha_bar[0] == 1
    assert schedule.signal[0] == 1
    assert schedule.noise[0] == 0
    assert schedule.beta[0] == 0


def test_tables_are_what_their_names_say_for_betas_worked_out_by_hand() -> None:
    schedule = Given(0.1, 0.5, 0.2)
    expected = [1, 0.9, 0.45, 0.36]
    np.testing.assert_allclose(schedule.beta, [0, 0.1, 0.5, 0.2], rtol=1e-15)
    np.testing.assert_allclose(schedule.alpha_bar, expected, rtol=1e-15)
    np.testing.assert_allclose(schedule.signal, [math.sqrt(each) for each in expected], rtol=1e-15)
    np.testing.assert_allclose(schedule.noise, [math.sqrt(1 - each) for each in expected], rtol=1e-15)


@pytest.mark.parametrize("kind", [Linear, Quadratic])
def test_first_and_last_beta_are_the_ones_asked_for(kind: type[Linear]) -> None:
    schedule = kind(300, beta_min=3e-4, beta_max=0.05)
    assert schedule.beta[1].item() == pytest.approx(3e-4, rel=1e-12)
    assert schedule.beta[300].item() == pytest.approx(0.05, rel=1e-12)


def test_sigmoid_starts_and_ends_within_a_quarter_per_cent_of_its_range() -> None:
    # sigmoid(-6) = 0.00247 of the way from beta_min to beta_max, and as far from the other end
    schedule = Sigmoid(300, beta_min=1e-4, beta_max=0.02)
    tail = (0.02 - 1e-4) / (1 + math.exp(6))
    assert schedule.beta[1].item() == pytest.approx(1e-4 + tail, rel=1e-12)
    assert schedule.beta[300].item() == pytest.approx(0.02 - tail, rel=1e-12)


def test_by_default_the_schedule_is_ho_et_als() -> None:
    schedule = Linear()
    assert schedule.T == 1000
    assert schedule.beta[1].item() == pytest.approx(1e-4, rel=1e-12)
    assert schedule.beta[1000].item() == pytest.approx(0.02, rel=1e-12)
    # "approximately 10^-5 bits per dimension" of prior KL follows from this (Ho et al., section 4): 1/2 alpha_bar_T
    assert schedule.alpha_bar[1000].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_alpha_bar_is_nichol_and_dhariwals_until_beta_is_cut_at_0_999() -> None:
    schedule = Cosine(1000)
    time = np.arange(1001) / 1000
    f = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:1000], (f / f[0])[:1000], rtol=1e-9)
    assert schedule.beta[1000] == 0.999
    assert (schedule.beta[1:1000] < 0.999).all()


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Linear, "linear"), (Quadratic, "scaled_linear"), (Cosine, "squaredcos_cap_v2"), (Sigmoid, "sigmoid")],
)
def test_betas_are_diffusers(kind: type[NoiseSchedule], name: str, steps: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_start=1e-4, beta_end=0.02, beta_schedule=name)
    np.testing.assert_allclose(kind(steps).beta[1:], theirs.betas, rtol=5e-6)
    # theirs is a product of a thousand float32 numbers
    np.testing.assert_allclose(kind(steps).alpha_bar[1:], theirs.alphas_cumprod, rtol=2e-4)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_no_cast_of_the_module_around_it_changes_dtype_or_values(cast: str) -> None:
    module = nn.ModuleDict({"layer": nn.Linear(2, 2), "schedule": Linear()})
    before = tables(module["schedule"])
    getattr(module, cast)()
    assert module["layer"].weight.dtype == {"half": torch.half, "bfloat16": torch.bfloat16}.get(
        cast, torch.float64 if cast == "double" else torch.float32
    )
    for name, table in tables(module["schedule"]).items():
        assert table.dtype == torch.float64
        assert torch.equal(table, before[name])


def test_a_device_and_a_precision_asked_for_at_once_change_the_device_only() -> None:
    schedule = Linear(10).to(torch.device("meta"), torch.bfloat16)
    for name in TABLES:
        assert getattr(schedule, name).device.type == "meta"
        assert getattr(schedule, name).dtype == torch.float64


def test_nothing_of_it_is_saved_or_trained() -> None:
    schedule = Linear(10)
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == []


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(kind: type[NoiseSchedule], steps: int) -> None:
    with pytest.raises(UserError, match=f"at least one step, got steps={steps}"):
        kind(steps)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_step_is_enough(kind: type[NoiseSchedule]) -> None:
    schedule = kind(1)
    assert schedule.alpha_bar[1] == 1 - schedule.beta[1]


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.0, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("t", [1, 3])
def test_a_beta_outside_0_1_is_refused_and_its_step_named(bad: float, t: int) -> None:
    beta = [0.1, 0.2, 0.3, 0.4]
    beta[t - 1] = bad
    with pytest.raises(UserError, match=rf"every beta must lie in \(0, 1\), got beta_{t}={bad:g} at t={t} of 4"):
        Given(*beta)


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid])
@pytest.mark.parametrize("limits", [(-1e-4, 0.02), (1e-4, 1.2), (math.nan, 0.02), (1e-4, math.nan), (1e-4, -0.02)])
def test_limits_outside_0_1_are_refused_by_every_schedule(kind: type[Linear], limits: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"every beta must lie in \(0, 1\), got beta_"):
        kind(10, *limits)


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid])
@given(
    steps=st.integers(1, 2000),
    beta_min=st.floats(1e-6, 0.1),
    rise=st.floats(0, 0.1),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_betas_lie_in_0_1_and_alpha_bar_falls(kind: type[Linear], steps: int, beta_min: float, rise: float) -> None:
    check(kind(steps, beta_min, beta_min + rise), beta_min, beta_min + rise)


@given(steps=st.integers(1, 4000), offset=st.floats(1e-4, 0.1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_cosine_betas_lie_in_0_1_and_alpha_bar_falls(steps: int, offset: float) -> None:
    check(Cosine(steps, offset), 0, 0.999)


def check(schedule: NoiseSchedule, low: float, high: float) -> None:
    beta, alpha_bar = schedule.beta[1:], schedule.alpha_bar
    assert ((beta > 0) & (beta < 1)).all()
    assert ((beta >= low * (1 - 1e-12)) & (beta <= high * (1 + 1e-12))).all()
    assert (beta.diff() >= -1e-12).all()
    assert (alpha_bar.diff() < 0).all()
    assert (alpha_bar > 0).all()
    assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones_like(alpha_bar), rtol=0, atol=1e-14)
