"""The measurement behind ``--trainer.precision auto``."""

import time

import pytest
import torch

from lightning_ddpm.utils import precision_probe
from lightning_ddpm.utils.precision_probe import Shape, measure_bf16_speedup

CPU = torch.device("cpu")


def test_the_measured_step_computes_in_the_precision_that_it_is_measured_in(monkeypatch) -> None:
    seen = {}
    original = torch.nn.functional.scaled_dot_product_attention

    def attend(q, k, v):
        seen[torch.is_autocast_enabled("cpu")] = q.dtype
        return original(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert measure_bf16_speedup(CPU, 0) > 0
    assert seen == {False: torch.float32, True: torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), state), "a run with auto has the random numbers of one without"


@pytest.mark.parametrize(("full", "half"), [(0.003, 0.001), (0.001, 0.002)])
def test_the_ratio_is_that_of_the_fastest_steps(full, half, monkeypatch) -> None:
    """One step in three is slowed down by other work, in one precision or the other."""
    calls = []

    def slow(step, device, in_half) -> float:
        calls.append(in_half)
        return (half if in_half else full) * (10 if len(calls) % 3 == 0 else 1)

    monkeypatch.setattr(precision_probe, "_time", slow)
    assert measure_bf16_speedup(CPU, 0) == pytest.approx(full / half)
    assert calls.count(True) == calls.count(False)


def test_where_bfloat16_is_hopeless_only_a_small_step_is_measured(monkeypatch) -> None:
    shapes = []
    original = precision_probe._make_step

    def make_step(device, shape):
        shapes.append(shape)
        return original(device, shape)

    def emulate(step, device, in_half) -> float:
        started = time.perf_counter()
        step()
        return (time.perf_counter() - started) * (200 if in_half else 1)

    monkeypatch.setattr(precision_probe, "_make_step", make_step)
    monkeypatch.setattr(precision_probe, "_time", emulate)
    assert measure_bf16_speedup(CPU) < precision_probe.HOPELESS
    assert shapes == [Shape(1, *precision_probe.SHAPES["cpu"][1:])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_measured_without_a_change_of_its_random_numbers() -> None:
    device = torch.device("cuda", 0)
    state = torch.cuda.get_rng_state(device)
    assert measure_bf16_speedup(device) > 0
    assert torch.equal(torch.cuda.get_rng_state(device), state)
