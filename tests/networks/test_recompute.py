"""Blocks that compute their activations again in the backward pass: the same gradients in less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ddpm.networks import UNet, UNetLayers
from lightning_ddpm.utils.errors import UserError

RESAMPLING = UNetLayers(scale_shift=True, heads=4, residual_resampling=True)


def build(recompute: tuple[int, ...], layers: UNetLayers | None = None) -> UNet:
    torch.manual_seed(0)
    shape = (1, 16, 32, (1, 2), (8,))
    network = UNet(*shape, dropout=0.3, recompute=recompute, layers=layers)
    with torch.no_grad():
        for each in network.parameters():  # as initialised, half of the blocks are scaled by 1e-5
            each.add_(0.02 * torch.randn_like(each))
    return network


def step(network: UNet) -> tuple[Tensor, list[Tensor | None], int]:
    """Return the output, all gradients, and the bytes that the graph keeps."""
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    torch.manual_seed(1)
    x, t = torch.randn(4, 1, 16, 16), torch.tensor([1, 10, 100, 1000])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = network(x, t)
    output.square().mean().backward()
    return output.detach(), [each.grad for each in network.parameters()], sum(kept.values())


@pytest.mark.parametrize("layers", [None, RESAMPLING], ids=["ho", "residual_resampling"])
@pytest.mark.parametrize("resolutions", [(16,), (8,), (16, 8)])
def test_gradients_are_bit_equal_with_dropout_and_less_is_kept(
    resolutions: tuple[int, ...], layers: UNetLayers | None
) -> None:
    plain, saving = step(build((), layers)), step(build(resolutions, layers))
    assert torch.equal(plain[0], saving[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], saving[1], strict=True))
    assert saving[2] < (0.5 if len(resolutions) == 2 else 0.9) * plain[2]


def test_sampling_recomputes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("lightning_ddpm.networks.blocks.checkpoint", refuse)
    with torch.no_grad():
        build((16,))(torch.randn(1, 1, 16, 16), torch.tensor([5]))


def test_a_resolution_that_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"recompute is set for the sizes \[4\], but the levels have the sizes \[16, 8\]"
    ):
        build((4,))
