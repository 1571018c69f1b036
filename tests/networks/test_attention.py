"""Self-attention's queries, keys and values: one product on a GPU, three on a CPU, the same function."""

import pytest
import torch
from helpers.fake_gpu import GPU, fake_gpu
from torch import nn
from torch.nn import functional

from lightning_ddpm.networks.blocks import AttentionBlock, apply_together
from lightning_ddpm.utils.trace_internals import OperatorTrace


def test_layers_applied_together_have_the_outputs_and_gradients_of_each() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, dtype=torch.float64) for _ in range(3)]
    x = torch.randn(2, 1, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(parameter for layer in layers for parameter in layer.parameters())]
    together, apart = apply_together(layers, x), [layer(x) for layer in layers]
    direction = [torch.randn_like(each) for each in apart]
    gradients = (torch.autograd.grad(outputs, inputs, direction) for outputs in (together, apart))
    for ours, expected in zip((*together, *next(gradients)), (*apart, *next(gradients)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("device", "products"), [(torch.device("cpu"), 4), (GPU, 2)])
def test_a_gpu_computes_queries_keys_and_values_in_one_product(device: torch.device, products: int) -> None:
    with fake_gpu(), pytest.MonkeyPatch.context() as patch, device:
        patch.setattr(functional, "scaled_dot_product_attention", lambda query, key, value: query + key + value)
        block, x = AttentionBlock(32, 8), torch.empty(4, 32, 8, 8)
        with OperatorTrace() as trace:
            block(x)
    assert sum(each.name in ("aten.mm", "aten.addmm") for each in trace.operations) == products
