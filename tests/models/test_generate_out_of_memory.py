"""Generation of batches that do not fit into memory."""

from typing import Any

import pytest
import torch
from helpers.tiny import tiny_model

from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


def test_a_batch_too_large_for_memory_is_generated_in_reported_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, sizes = tiny_model(), []
    whole = torch.cat([pixels for _, pixels in generate_batches(model, SampleRequest(n=20, seed=3, batch_size=8))])
    generate = model.generate

    def small(request: SampleRequest, start: int, stop: int) -> torch.Tensor:
        sizes.append(stop - start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(request, start, stop)

    model.generate = small  # type: ignore[method-assign]
    ranges = []
    parts = []
    for batch, pixels in generate_batches(model, SampleRequest(n=20, seed=3, batch_size=8)):
        ranges.append(batch)
        parts.append(pixels)
    assert ranges == [(3, 0, 8), (3, 8, 16), (3, 16, 20)]
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
    assert sizes == [8, 4, 2, 2, 2, 2, *[2] * 4, *[2] * 2]
    out = capsys.readouterr().out
    assert "a batch of 8 images does not fit into memory; continuing with 4" in out
    assert "a batch of 4 images does not fit into memory; continuing with 2" in out


def test_an_image_too_large_for_memory_is_an_error() -> None:
    model = tiny_model()

    def none(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.generate = none  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        list(generate_batches(model, SampleRequest(n=4, batch_size=4)))
