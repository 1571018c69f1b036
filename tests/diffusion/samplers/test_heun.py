"""Heun's method: its order."""

import pytest
from helpers.sampler_checks import measure_orders, space_by_lambda

from lightning_ddpm.diffusion import (
    Heun,
)


def test_heun_is_of_second_order() -> None:
    assert measure_orders(lambda n: Heun(n, spacing=space_by_lambda), (24, 48, 96)) == pytest.approx([2] * 2, abs=0.15)
