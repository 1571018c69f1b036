"""Noise schedules: their values, their limits, and that casts do not change them."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_ddpm.diffusion import (
    X0,
    AlphaBarFunction,
    Cosine,
    Epsilon,
    ExplicitBetas,
    Linear,
    NoiseSchedule,
    Parameterization,
    PosteriorMean,
    Quadratic,
    Sigmoid,
    Velocity,
    ZeroTerminalSNR,
)
from lightning_ddpm.utils.errors import UserError

SCHEDULES = [Linear, Quadratic, Sigmoid, Cosine]
TABLES = ["beta", "alpha_bar", "signal", "noise"]


def tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    return {name: getattr(schedule, name).clone() for name in TABLES}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_tables_are_float64_from_0_to_T(kind: type[NoiseSchedule]) -> None:
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


def test_tables_by_hand() -> None:
    schedule = ExplicitBetas([0.1, 0.5, 0.2])
    expected = [1, 0.9, 0.45, 0.36]
    np.testing.assert_allclose(schedule.beta, [0, 0.1, 0.5, 0.2], rtol=1e-15)
    np.testing.assert_allclose(schedule.alpha_bar, expected, rtol=1e-15)
    np.testing.assert_allclose(schedule.signal, [math.sqrt(each) for each in expected], rtol=1e-15)
    np.testing.assert_allclose(schedule.noise, [math.sqrt(1 - each) for each in expected], rtol=1e-15)


@pytest.mark.parametrize("kind", [Linear, Quadratic])
def test_the_first_and_last_beta_are_the_given_ones(kind: type[Linear]) -> None:
    schedule = kind(300, beta_min=3e-4, beta_max=0.05)
    assert schedule.beta[1].item() == pytest.approx(3e-4, rel=1e-12)
    assert schedule.beta[300].item() == pytest.approx(0.05, rel=1e-12)


def test_sigmoid_starts_and_ends_within_a_quarter_percent_of_its_limits() -> None:
    # sigmoid(-6) = 0.00247 of the range above beta_min, and as far below beta_max at the other end
    schedule = Sigmoid(300, beta_min=1e-4, beta_max=0.02)
    tail = (0.02 - 1e-4) / (1 + math.exp(6))
    assert schedule.beta[1].item() == pytest.approx(1e-4 + tail, rel=1e-12)
    assert schedule.beta[300].item() == pytest.approx(0.02 - tail, rel=1e-12)


def test_the_default_schedule_is_ho_et_als() -> None:
    schedule = Linear()
    assert schedule.T == 1000
    assert schedule.beta[1].item() == pytest.approx(1e-4, rel=1e-12)
    assert schedule.beta[1000].item() == pytest.approx(0.02, rel=1e-12)
    # "approximately 10^-5 bits per dimension" of prior KL follows from this (Ho et al., section 4): 1/2 alpha_bar_T
    assert schedule.alpha_bar[1000].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_alpha_bar_is_nichol_and_dhariwals_until_beta_is_clipped_at_0_999() -> None:
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
def test_betas_equal_diffusers(kind: type[NoiseSchedule], name: str, steps: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_start=1e-4, beta_end=0.02, beta_schedule=name)
    np.testing.assert_allclose(kind(steps).beta[1:], theirs.betas, rtol=5e-6)
    # diffusers multiplies a thousand float32 numbers
    np.testing.assert_allclose(kind(steps).alpha_bar[1:], theirs.alphas_cumprod, rtol=2e-4)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_casting_the_parent_module_changes_neither_dtype_nor_values(cast: str) -> None:
    module = nn.ModuleDict({"layer": nn.Linear(2, 2), "schedule": Linear()})
    before = tables(module["schedule"])
    getattr(module, cast)()
    assert module["layer"].weight.dtype == {"half": torch.half, "bfloat16": torch.bfloat16}.get(
        cast, torch.float64 if cast == "double" else torch.float32
    )
    for name, table in tables(module["schedule"]).items():
        assert table.dtype == torch.float64
        assert torch.equal(table, before[name])


def test_to_device_and_dtype_changes_only_the_device() -> None:
    schedule = Linear(10).to(torch.device("meta"), torch.bfloat16)
    for name in TABLES:
        assert getattr(schedule, name).device.type == "meta"
        assert getattr(schedule, name).dtype == torch.float64


def test_a_schedule_has_no_state_and_no_parameters() -> None:
    schedule = Linear(10)
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == []


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(kind: type[NoiseSchedule], steps: int) -> None:
    with pytest.raises(UserError, match=f"at least one step and has at most 1,000,000, got steps={steps}"):
        kind(steps)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_of_one_step_is_valid(kind: type[NoiseSchedule]) -> None:
    schedule = kind(1)
    assert schedule.alpha_bar[1] == 1 - schedule.beta[1]


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.0, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("t", [1, 3])
def test_a_beta_outside_0_1_is_refused_with_its_timestep(bad: float, t: int) -> None:
    beta = [0.1, 0.2, 0.3, 0.4]
    beta[t - 1] = bad
    with pytest.raises(UserError, match=rf"every beta must lie in \(0, 1\), got beta_{t}={bad:g} at t={t} of 4"):
        ExplicitBetas(beta)


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
def test_betas_lie_in_0_1_and_alpha_bar_decreases(kind: type[Linear], steps: int, beta_min: float, rise: float) -> None:
    check_tables(kind(steps, beta_min, beta_min + rise), beta_min, beta_min + rise)


@given(steps=st.integers(1, 4000), offset=st.floats(1e-4, 0.1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_cosine_betas_lie_in_0_1_and_alpha_bar_decreases(steps: int, offset: float) -> None:
    check_tables(Cosine(steps, offset), 0, 0.999)


def check_tables(schedule: NoiseSchedule, low: float, high: float) -> None:
    beta, alpha_bar = schedule.beta[1:], schedule.alpha_bar
    assert ((beta > 0) & (beta < 1)).all()
    assert ((beta >= low * (1 - 1e-12)) & (beta <= high * (1 + 1e-12))).all()
    assert (beta.diff() >= -1e-12).all()
    assert (alpha_bar.diff() < 0).all()
    assert (alpha_bar > 0).all()
    assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones_like(alpha_bar), rtol=0, atol=1e-14)


# ---- custom schedules ----------------------------------------------------------------------------------------------


class CustomSchedule(NoiseSchedule):
    """A user's subclass that returns the given betas."""

    def __init__(self, steps: int, betas: Any) -> None:
        self.betas = betas
        super().__init__(steps)

    def compute_betas(self, steps: int) -> Tensor:
        return self.betas


def squared_cosine(time: float) -> float:
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda betas: np.array(betas, dtype=np.float32)])
def test_explicit_betas_accept_lists_arrays_and_tensors(kind: Callable[[list[float]], Any]) -> None:
    given = kind([0.5, 0.125, 0.25])
    schedule = ExplicitBetas(given)
    assert schedule.beta.tolist() == [0, 0.5, 0.125, 0.25]
    assert schedule.alpha_bar.tolist() == [1, 0.5, 0.4375, 0.328125]


def test_explicit_betas_are_a_copy() -> None:
    given = [0.1, 0.2]
    schedule = ExplicitBetas(given)
    given[0] = 0.9
    assert schedule.compute_betas(2).tolist() == [0.1, 0.2]


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_nichol_and_dhariwals_f_gives_the_cosine_schedule(steps: int) -> None:
    ours = AlphaBarFunction(squared_cosine, steps)
    torch.testing.assert_close(ours.beta, Cosine(steps).beta, rtol=0, atol=1e-14)


def test_alpha_bar_function_by_hand() -> None:
    schedule = AlphaBarFunction(lambda time: 4 - 3 * time, 3)  # 4, 3, 2, 1
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor([4, 3, 2, 1]).double() / 4, rtol=1e-14, atol=0)
    assert AlphaBarFunction(lambda time: 1 - time, 4, max_beta=0.5).beta.tolist() == pytest.approx(
        [0, 1 / 4, 1 / 3, 1 / 2, 1 / 2]
    )


@pytest.mark.parametrize(
    "before", [Linear(1000), Quadratic(1000), Sigmoid(200), Cosine(50), ExplicitBetas([0.1, 0.5, 0.2])]
)
def test_zero_terminal_snr_equals_diffusers(before: NoiseSchedule) -> None:
    schedule = ZeroTerminalSNR(before)
    torch.testing.assert_close(schedule.beta[1:], rescale_zero_terminal_snr(before.beta[1:]), rtol=1e-12, atol=1e-15)
    assert schedule.alpha_bar[-1] == schedule.signal[-1] == 0
    assert schedule.beta[-1] == schedule.noise[-1] == 1
    assert schedule.alpha_bar[1].item() == pytest.approx(before.alpha_bar[1].item(), rel=1e-14)


def test_zero_terminal_snr_by_hand() -> None:
    # sqrt(alpha_bar) = 0.8, 0.6, 0.4 -> less 0.4, times 0.8 / 0.4
    before = ExplicitBetas([1 - 0.64, 1 - 0.36 / 0.64, 1 - 0.16 / 0.36])
    torch.testing.assert_close(ZeroTerminalSNR(before).signal, torch.tensor([1, 0.8, 0.4, 0]).double())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExplicitBetas([0.1, 0.2]),
        lambda: ZeroTerminalSNR(Linear(5)),
        lambda: AlphaBarFunction(squared_cosine, 5),
    ],
)
def test_custom_schedules_are_constants_too(make: Callable[[], NoiseSchedule]) -> None:
    schedule = make().half()
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == list(schedule.children()) == []
    assert {table.dtype for table in tables(schedule).values()} == {torch.float64}
    assert torch.equal(copy.deepcopy(schedule).beta, schedule.beta)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), (), (0,)], ids=str)
def test_betas_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UserError, match=r"4 steps needs 4 betas.*\(4,\), got shape .* from CustomSchedule; give one number"
    ):
        CustomSchedule(4, torch.full(shape, 0.1))


def test_an_empty_list_of_betas_is_refused() -> None:
    with pytest.raises(UserError, match=r"empty; give beta_1..beta_T"):
        ExplicitBetas([])
    with pytest.raises(UserError, match=r"got shape \(2, 1\)"):
        ExplicitBetas([[0.1], [0.2]])  # type: ignore[list-item]


@pytest.mark.parametrize("small", [1e-17, 1e-300])
@pytest.mark.parametrize("t", [1, 3])
def test_a_beta_below_float64_resolution_is_refused(small: float, t: int) -> None:
    beta = [0.1, 0.2, 0.3, 0.4]
    beta[t - 1] = small
    with pytest.raises(
        UserError, match=rf"does not decrease in float64 at t={t} of 4: beta_{t}={small:g} is too small"
    ):
        ExplicitBetas(beta)


def test_betas_that_leave_no_signal_before_T_are_refused() -> None:
    with pytest.raises(UserError, match=r"no signal is left before t=500.*lower the betas"):
        ExplicitBetas([0.9] * 500)


@pytest.mark.parametrize(
    ("alpha_bar", "message"),
    [
        (lambda time: 1.0, "got 1 at time 1/4 after 1"),
        (lambda time: time + 0.1, "got 0.35 at time 1/4 after 0.1"),
        (lambda time: 1 - 2 * time, "got 0 at time 2/4 after 0.5"),
        (lambda time: 0.5 - time if time < 1 else -0.1, "got 0 at time 2/4"),
        (lambda time: 1 - time if time < 1 else -0.1, "got -0.1 at time 4/4"),
        (lambda time: math.nan if time > 0.6 else 1 - time, "got nan at time 3/4"),
        (lambda time: math.inf, "got inf at time 0/4"),
        (lambda time: -1 - time, "got -1 at time 0/4"),
        (lambda time: 0 * time, "got 0 at time 0/4"),
    ],
)  # fmt: skip
def test_an_alpha_bar_that_does_not_decrease_is_refused(alpha_bar: Callable[[float], float], message: str) -> None:
    with pytest.raises(UserError, match=rf"must be finite, decrease .* {re.escape(message)}.*fix the function"):
        AlphaBarFunction(alpha_bar, 4)


@pytest.mark.parametrize("value", [None, "much", torch.ones(2), [1.0]], ids=str)
def test_an_alpha_bar_that_returns_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"alpha_bar must return a number, got .* at time 0; fix the function"):
        AlphaBarFunction(lambda time: value)


@pytest.mark.parametrize("max_beta", [0, 1, -0.5, math.nan])
def test_a_max_beta_outside_0_1_is_refused(max_beta: float) -> None:
    with pytest.raises(UserError, match=r"max_beta must lie in \(0, 1\), got .*ZeroTerminalSNR"):
        AlphaBarFunction(squared_cosine, 10, max_beta)


def test_zero_terminal_snr_of_one_step_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 steps, got 1"):
        ZeroTerminalSNR(Linear(1))


@pytest.mark.parametrize("parameterization", [Epsilon(), PosteriorMean()], ids=repr)
def test_nearly_zero_terminal_snr_is_refused_like_zero(parameterization: Parameterization) -> None:
    nearly = ExplicitBetas([0.9] * 100)  # sqrt(alpha_bar_T) = 1e-50, which is 0 in float32
    with pytest.raises(
        UserError, match=rf"alpha_bar_T=1e-100.*{parameterization} does not determine x_0.*Velocity or X0"
    ):
        parameterization.check_schedule(nearly)
    for other in (Velocity(), X0()):
        other.check_schedule(nearly)
    for schedule in (Linear(1000), Cosine(4000)):
        parameterization.check_schedule(schedule)
