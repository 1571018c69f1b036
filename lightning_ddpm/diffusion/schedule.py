"""Noise schedules: beta_t and alpha_bar_t for t = 0..T.

Time runs t = 1..T as in Ho et al. 2020 (arXiv:2006.11239), and ``alpha_bar[0] = 1`` is stored, so that x_0 is simply
x_t at t = 0: this needs no padding, no table of previous timesteps and no mask at the first one. A schedule of your own
is a subclass of :class:`NoiseSchedule` with ``compute_betas``.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self, TypeGuard, final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import MAX_STEPS, GaussianPath, Timestep, choose_precision
from lightning_ddpm.utils.errors import UserError


def _is_real(t: Timestep) -> TypeGuard[Tensor]:
    return isinstance(t, Tensor) and t.is_floating_point()


class NoiseSchedule(GaussianPath):
    """The path of a chain of T steps, given by their variances beta_1..beta_T; between timesteps it is interpolated.

    The tables derived from beta are constants that move with the module.

    Attributes (each of shape (T + 1,), indexed by t; entry 0 stands for the data):
        beta: variance of the step q(x_t | x_{t-1}); ``beta[0]`` is 0 and never used.
        alpha_bar: product of alpha_s = 1 - beta_s over s <= t; ``alpha_bar[0]`` is 1.
        signal: sqrt(alpha_bar_t), the factor of x_0 in x_t.
        noise: sqrt(1 - alpha_bar_t), the factor of eps in x_t.
        angle: phi_t = atan(noise / signal), from 0 at the data up to pi/2, where no signal is left.

    The methods ``..._at`` look an int t up in copies on the host.

    The tables are float64 wherever the device supports it (float32 on Apple's MPS), whatever precision the network runs
    in: in bfloat16 ``1 - alpha_bar`` would lose all its digits. They are never saved and never averaged.
    """

    last_beta: ClassVar[float] = math.nextafter(1, 0)
    """The largest allowed beta_T: 1 in a schedule that ends without any signal on purpose."""

    beta: Tensor
    alpha_bar: Tensor
    signal: Tensor
    noise: Tensor
    angle: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        _check_steps(steps)
        betas = torch.as_tensor(self.compute_betas(steps), dtype=torch.float64, device="cpu")
        if betas.shape != (steps,):
            raise UserError(
                f"a schedule of {steps} steps needs {steps} betas, shape ({steps},), got shape {tuple(betas.shape)} "
                f"from {type(self).__name__}; give one number per step"
            )
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas])
        valid = (betas > 0) & (betas < 1)
        valid[-1] |= betas[-1] == self.last_beta
        if t := _first_timestep(~valid):
            raise UserError(
                f"every beta must lie in (0, 1), got beta_{t}={beta[t].item():g} at t={t} of {steps}; give finite "
                "numbers in that range, and for beta_T = 1 (no signal at T) wrap the schedule in ZeroTerminalSNR"
            )
        alpha_bar = torch.cumprod(1 - beta, 0)
        if steps > 1 and alpha_bar[-2] == 0:
            raise UserError(f"no signal is left before t={steps}: alpha_bar is 0 in float64; lower the betas")
        if t := _first_timestep(alpha_bar.diff() >= 0):
            raise UserError(
                f"alpha_bar does not decrease in float64 at t={t} of {steps}: beta_{t}={beta[t].item():g} is too "
                "small; give betas of at least 1e-15"
            )
        self.alpha_bar_T = float(alpha_bar[-1])
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._host = {"beta": beta, "alpha_bar": alpha_bar, "signal": signal, "noise": noise}
        self._host["angle"] = torch.atan2(noise, signal)
        for name, table in self._host.items():
            self.register_buffer(name, table, persistent=False)

    @abstractmethod
    def compute_betas(self, steps: int) -> Tensor:
        """Return beta_1..beta_T in float64, shape (steps,)."""

    @property
    def T(self) -> int:
        return len(self.beta) - 1

    def _look_up(self, name: str, t: Timestep) -> Tensor:
        """Return the table's entries at integer t, with the shape of ``t``; that of a number is on the host."""
        table: Tensor = getattr(self, name) if isinstance(t, Tensor) else self._host[name]
        return table[t]

    @final
    def beta_at(self, t: Timestep) -> Tensor:
        return self._look_up("beta", t)

    @final
    def scale_at(self, t: Timestep) -> None:
        return None

    @final
    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(1, self.T + 1, (n,), device=generator.device, generator=generator)

    @final
    def nearest_time(self, t: Tensor) -> Tensor:
        return t.round().clamp(1, self.T).long()

    def angle_at(self, t: Timestep) -> Tensor:
        # at real t in [0, T], interpolated linearly between the neighbouring timesteps
        if not _is_real(t):
            return self._look_up("angle", t)
        lower = t.long().clamp(max=self.T - 1)
        return torch.lerp(self.angle[lower], self.angle[lower + 1], (t - lower).to(self.angle.dtype))

    def time_at(self, angle: Tensor) -> Tensor:
        upper = torch.searchsorted(self.angle, angle.to(self.angle.dtype)).clamp(1, self.T)
        return upper - (self.angle[upper] - angle) / (self.angle[upper] - self.angle[upper - 1])

    def signal_at(self, t: Timestep) -> Tensor:
        return self.angle_at(t).cos() if _is_real(t) else self._look_up("signal", t)

    def noise_at(self, t: Timestep) -> Tensor:
        return self.angle_at(t).sin() if _is_real(t) else self._look_up("noise", t)

    def alpha_bar_at(self, t: Timestep) -> Tensor:
        return self.angle_at(t).cos() ** 2 if _is_real(t) else self._look_up("alpha_bar", t)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The tables follow the module to its device, but a cast must not change their precision.
        device = fn(torch.empty(0, device=self.beta.device)).device
        dtype = choose_precision(device)
        return super()._apply(lambda table: table.to(device, dtype), recurse)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        return f"T={self.T}, alpha_bar_T={self.alpha_bar_T:.3g}"


class BetaRange(NoiseSchedule):
    """A schedule whose beta_t rises from ``beta_min`` to ``beta_max``; the defaults are those of Ho et al. 2020."""

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        if beta_min < 0 or beta_max < 0:
            raise UserError(f"every beta must lie in (0, 1), got beta_min={beta_min} and beta_max={beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__(steps)


class Linear(BetaRange):
    """Linear schedule: beta_t rises linearly from ``beta_min`` to ``beta_max``; Ho et al. 2020, section 4."""

    def compute_betas(self, steps: int) -> Tensor:
        return torch.linspace(self.beta_min, self.beta_max, steps, dtype=torch.float64)


class Quadratic(BetaRange):
    """Quadratic schedule: sqrt(beta_t) rises linearly, so beta stays small for longer; ``quad`` in Ho et al.'s code."""

    def compute_betas(self, steps: int) -> Tensor:
        return torch.linspace(self.beta_min**0.5, self.beta_max**0.5, steps, dtype=torch.float64) ** 2


class Sigmoid(BetaRange):
    """Sigmoid over [-6, 6], scaled to run from ``beta_min`` to ``beta_max``; Xu et al. 2022 (arXiv:2203.02923)."""

    def compute_betas(self, steps: int) -> Tensor:
        ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        return self.beta_min + (self.beta_max - self.beta_min) * ramp


class Cosine(NoiseSchedule):
    """Cosine schedule: squared-cosine alpha_bar_t, beta <= 0.999; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17."""

    def __init__(self, steps: int = 1000, offset: float = 0.008) -> None:
        self.offset = offset
        super().__init__(steps)

    def compute_betas(self, steps: int) -> Tensor:
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _betas_from_alpha_bar(alpha_bar).clamp(max=0.999)


class ExplicitBetas(NoiseSchedule):
    """Schedule with explicitly given beta_1..beta_T; T is their number.

    Args:
        betas: beta_1..beta_T, each in (0, 1), or the last one 1 for zero terminal SNR; a list in a config, in Python
            also an array or a tensor.
    """

    last_beta = 1.0

    def __init__(self, betas: list[float]) -> None:
        if len(betas) == 0:
            raise UserError("the list of betas is empty; give beta_1..beta_T, one number in (0, 1) for each step")
        self.values = torch.as_tensor(betas, dtype=torch.float64).tolist()
        super().__init__(len(betas))

    def compute_betas(self, steps: int) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


class AlphaBarFunction(NoiseSchedule):
    """Schedule whose alpha_bar_t is any function of t/T, like f in Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17.

    Args:
        alpha_bar: the signal's share of the variance at a time in [0, 1]; a config gives its dotted name. It must be
            finite and decreasing, and positive before time 1. It is normalised by its value at time 0.
        steps: T.
        max_beta: upper limit of the betas; it is needed where the function ends at 0.
    """

    def __init__(self, alpha_bar: Callable[[float], float], steps: int = 1000, max_beta: float = 0.999) -> None:
        if not 0 < max_beta < 1:
            raise UserError(f"max_beta must lie in (0, 1), got {max_beta}; for alpha_bar_T = 0 use ZeroTerminalSNR")
        self.max_beta = max_beta
        _check_steps(steps)
        self.values = [_call_for_number(alpha_bar, t / max(steps, 1)) for t in range(steps + 1)]
        for t, value in enumerate(self.values):
            least = math.nextafter(0, 1) if t < steps else 0.0
            if not (least <= value < math.inf and (t == 0 or value < self.values[t - 1])):
                raise UserError(
                    f"alpha_bar must be finite, decrease from time 0 to 1 and be positive before 1, got {value:g} at "
                    f"time {t}/{steps}" + (f" after {self.values[t - 1]:g}" if t else "") + "; fix the function, e.g. "
                    "cos(time pi/2)^2"
                )
        super().__init__(steps)

    def compute_betas(self, steps: int) -> Tensor:
        return _betas_from_alpha_bar(torch.tensor(self.values, dtype=torch.float64)).clamp(max=self.max_beta)


class ZeroTerminalSNR(NoiseSchedule):
    """Rescaled schedule with alpha_bar_T = 0; Lin et al. 2023 (arXiv:2305.08891), Algorithm 1.

    sqrt(alpha_bar) is shifted and scaled so that it ends at 0 and alpha_bar_1 is unchanged. Training then sees the pure
    noise x_T from which sampling starts. It needs a parameterization that determines x_0 at T: Velocity or X0.

    Args:
        schedule: the schedule to rescale, of at least 2 steps.
    """

    last_beta = 1.0

    def __init__(self, schedule: NoiseSchedule) -> None:
        if schedule.T < 2:
            raise UserError("zero terminal SNR keeps alpha_bar_1 and sets alpha_bar_T: give at least 2 steps, got 1")
        self.values = schedule.signal.tolist()
        super().__init__(schedule.T)

    def compute_betas(self, steps: int) -> Tensor:
        first, last = self.values[1], self.values[-1]
        rescaled = (torch.tensor(self.values[1:], dtype=torch.float64) - last) * (first / (first - last))
        return _betas_from_alpha_bar(torch.cat([torch.ones(1, dtype=torch.float64), rescaled**2]))


def require_chain(path: GaussianPath, what: str, instead: str = "") -> NoiseSchedule:
    """Return the path, after checking that it is a discrete chain, which ``what`` needs.

    Raises:
        UserError: it is continuous; the message names what to do ``instead``, too.
    """
    if isinstance(path, NoiseSchedule):
        return path
    raise UserError(
        f"{what} belongs to a chain of discrete steps, and {type(path).__name__} is continuous; take a NoiseSchedule, "
        "such as Cosine" + (f", or {instead}" if instead else "")
    )


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(
            f"a schedule needs at least one step and has at most {MAX_STEPS:,}, got steps={steps}; Ho et al. use 1000"
        )


def _first_timestep(condition: Tensor) -> int:
    """Return the first t in 1..T at which the condition (T,) holds, or 0 if it holds nowhere."""
    return int(condition.nonzero()[0]) + 1 if condition.any() else 0


def _betas_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Return the beta_1..beta_T that give alpha_bar_0..alpha_bar_T; Nichol & Dhariwal 2021, section 3.2."""
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def _call_for_number(function: Callable[[float], float], time: float) -> float:
    value = function(time)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"alpha_bar must return a number, got {value!r} at time {time:g}; fix the function") from error
