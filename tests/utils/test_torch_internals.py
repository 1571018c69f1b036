"""torch's private API is as this package uses it; a failure says what a new version has changed."""

import pytest
import torch
from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling

from lightning_ddpm.utils.torch_internals import disable_own_unscaling


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_can_be_kept_from_unscaling_gradients(kind: type[torch.optim.Optimizer]) -> None:
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], lr=1e-3, fused=True)
    changed = (
        f"torch {torch.__version__}: a fused {kind.__name__} has no _step_supports_amp_scaling that Lightning reads"
    )
    assert _optimizer_handles_unscaling(optimizer), changed
    disable_own_unscaling(optimizer)
    assert not _optimizer_handles_unscaling(optimizer), changed
