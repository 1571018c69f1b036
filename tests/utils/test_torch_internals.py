"""torch's private API is as this package uses it; a failure says what a new version has changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling

from lightning_ddpm.utils.torch_internals import (
    allow_any_batch_size,
    create_summary_writer,
    disable_own_unscaling,
    get_compiled_call,
    get_compiler_error,
    set_compiled_call,
)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_can_be_kept_from_unscaling_gradients(kind: type[torch.optim.Optimizer]) -> None:
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], lr=1e-3, fused=True)
    changed = (
        f"torch {torch.__version__}: a fused {kind.__name__} has no _step_supports_amp_scaling that Lightning reads"
    )
    assert _optimizer_handles_unscaling(optimizer), changed
    disable_own_unscaling(optimizer)
    assert not _optimizer_handles_unscaling(optimizer), changed


def test_the_call_of_a_compiled_module_can_be_wrapped_and_removed() -> None:
    changed = f"torch {torch.__version__}: a module does not call _compiled_call_impl after compile()"
    calls = []
    network = torch.nn.Identity()
    network.compile(backend="eager")
    compiled = get_compiled_call(network)
    set_compiled_call(network, lambda x: (calls.append(x), compiled(x))[1])
    assert network(torch.ones(2)).sum() == 2, changed
    assert len(calls) == 1, changed
    set_compiled_call(network, None)
    network(torch.ones(2))
    assert len(calls) == 1, changed


def test_a_batch_dimension_can_be_marked_as_dynamic() -> None:
    sizes = []

    def backend(graph, inputs):
        sizes.append(1)
        return graph.forward

    compiled = torch.compile(lambda x: x * 2, backend=backend)
    for size in (2, 3, 5):
        x = torch.ones(size)
        allow_any_batch_size(x)
        compiled(x)
    assert len(sizes) == 1, f"torch {torch.__version__}: maybe_mark_dynamic does not share a graph over batch sizes"


def test_a_failing_backend_raises_the_error_that_is_caught() -> None:
    def backend(graph, inputs):
        raise ValueError("no compiler")

    with pytest.raises(get_compiler_error()) as raised:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    changed = f"torch {torch.__version__}: BackendCompilerFailed has no inner_exception"
    assert str(getattr(raised.value, "inner_exception", "")) == "no compiler", changed


def test_the_events_of_a_summary_writer_can_be_sent_elsewhere(tmp_path: Path) -> None:
    class Events(list[Any]):
        add_event = list.append

        def flush(self) -> None: ...

        close = flush

    events = Events()
    writer = create_summary_writer(str(tmp_path), events)
    writer.add_scalar("x", 1.0, 5)
    writer.close()
    changed = f"torch {torch.__version__}: a SummaryWriter does not get its file from _get_file_writer"
    assert [(event.step, event.summary.value[0].tag) for event in events] == [(5, "x")], changed
    assert list(tmp_path.iterdir()) == [], changed
