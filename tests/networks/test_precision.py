"""The network in half precision on a GPU: what autocast converts, and how far the result is from float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.fake_gpu import GPU, fake_gpu
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.layers import GroupNorm

LARGE = 16 * 32 * 16 * 16
"""Elements of an activation at the second level of the network below; every weight has fewer."""
LAYOUTS = ("view", "expand", "transpose", "permute", "detach", "slice", "unsqueeze", "split", "t.", "alias", "device")


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, and conversions of activations to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(each in str(func) for each in LAYOUTS):
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
            self.casts += func is torch.ops.aten._to_copy.default and args[0].numel() >= LARGE
        return out


@contextmanager
def autocast() -> Iterator[None]:
    """Enable bf16 autocast for GPUs, also where torch finds none."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def count_traffic(bf16: bool, norm: type[nn.GroupNorm] = GroupNorm) -> Traffic:
    """Run a U-Net on a fake GPU; attention, which has its own kernel on a real one, is left out."""
    with fake_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", lambda query, key, value: value)
        with GPU:
            network = UNet(3, 32, width=32, multipliers=(1, 1), attention=(), dropout=0.0)
            x, t = torch.empty(16, 3, 32, 32), torch.ones(16, dtype=torch.long)
        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.__class__ = norm
        with Traffic() as traffic:
            if bf16:
                with autocast():
                    network(x, t)
            else:
                network(x, t)
    return traffic


def test_half_precision_halves_the_memory_traffic_and_converts_no_activation() -> None:
    full, half = count_traffic(bf16=False), count_traffic(bf16=True)
    assert half.bytes < 0.6 * full.bytes
    assert half.casts == 0


def test_under_torchs_own_norm_half_precision_saves_little() -> None:
    """The reason for our GroupNorm; if it fails, torch no longer needs it."""
    full, half = count_traffic(bf16=False), count_traffic(bf16=True, norm=nn.GroupNorm)
    assert half.bytes > 0.9 * full.bytes
    assert half.casts > 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_in_the_inputs_precision_is_as_exact_as_its_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(8, 64, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.2 * torch.randn(64, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(64, generator=generator))
    x = (3 + torch.randn(4, 64, 16, 16, generator=generator)).to(dtype)
    exact = norm(x.float())
    rounded = functional.group_norm(x, 8, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)  # as on a GPU
    error = (rounded.float() - exact).abs().max()
    assert error < 4 * torch.finfo(dtype).eps * exact.abs().max()
