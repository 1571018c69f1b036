"""A fake GPU, whose tensors have devices, types and shapes but no values."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


class HostGenerator(torch.Generator):
    """A generator for the fake GPU, whose random tensors have no values anyway."""

    def __new__(cls, device: object = "cpu") -> "HostGenerator":
        return super().__new__(cls, "cpu")


GPU = torch.device("cuda", 0)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Provide a fake GPU inside the context; tensors from outside lose their values when they move there."""
    if torch.__version__ < (2, 11) and not torch.cuda.is_available():
        pytest.skip("torch 2.6 needs CUDA's driver even for tensors without values, 2.11 does not")
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(torch, "Generator", HostGenerator)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        yield
