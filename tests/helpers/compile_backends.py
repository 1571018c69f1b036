"""Backends of torch.compile for tests: one treats its results as CUDA graphs do, one records convolutions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import register_backend
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx import GraphModule

returned: list[Tensor] = []
"""What programs of ``overwriting`` returned since the last forward pass began, in its own memory."""
convolutions: list[tuple[Any, ...]] = []
"""Shape and strides of the image, the weight and the result of every convolution that ``recording`` compiled."""


def _replay(graph: GraphModule, example_inputs: Sequence[Tensor], begins: bool) -> Callable[..., Any]:
    """Return the graph as a function that destroys the results of all calls before, if it begins a step."""

    def call(*inputs: Any) -> Any:
        if begins:
            for each in returned:
                each.fill_(float("nan") if each.is_floating_point() else 1)
            returned.clear()
        given = {each.untyped_storage().data_ptr() for each in inputs if isinstance(each, Tensor)}
        results = []
        for each in graph(*inputs):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                returned.append(
                    each.detach()
                )  # shares memory, but is another tensor, so that .grad may take the result
            results.append(each)
        return results

    return make_boxed_func(call)  # type: ignore[no-any-return]


@register_backend(name="overwriting")
def overwriting(graph: GraphModule, example_inputs: Sequence[Tensor], **options: Any) -> Any:
    """Overwrite all results, of this and of other programs, when the next forward pass begins."""
    forward, backward = partial(_replay, begins=True), partial(_replay, begins=False)
    return aot_autograd(fw_compiler=forward, bw_compiler=backward)(graph, example_inputs)


@register_backend(name="recording")
def recording(graph: GraphModule, example_inputs: Sequence[Tensor], **options: Any) -> Any:
    """Run the graph as it is, and record its convolutions."""

    def record(graph: GraphModule, inputs: Sequence[Tensor]) -> Any:
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.convolution.default:
                tensors = (each.meta["val"] for each in (*node.args[:2], node))
                convolutions.append(tuple((each.shape, each.stride()) for each in tensors))
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=record)(graph, example_inputs)
