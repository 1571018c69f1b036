"""Generation of images from a model and a seed: the same images on any number of ranks.

Image i depends on (model, seed, i) alone. Another batch size changes the rounding inside convolutions, by one gray
level at most. Where that matters, as in a folder of images, batches are fixed ranges of indices and the number of ranks
changes nothing; otherwise every rank generates as many images as the others.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lightning_ddpm.data.sharding import ImageRange, split_evenly, split_ranges
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import ImageGenerator, check_images, check_request
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.distributed import Ranks


def generate(
    model: ImageGenerator,
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    labels: Sequence[int] | None = None,
) -> Tensor:
    """Return n images, (n, c, h, w) in the data's own values on the model's device.

    The arguments are those of :class:`SampleRequest`.
    """
    request = SampleRequest(n, seed, batch_size, sampler, guidance, labels)
    return torch.cat([pixels for _, pixels in generate_batches(model, request)])


def generate_batches(
    model: ImageGenerator,
    request: SampleRequest,
    ranks: Ranks | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    done: Collection[int] | None = None,
) -> Iterator[tuple[ImageRange, Tensor]]:
    """Yield this rank's images batch by batch; a batch that does not fit into memory is generated in smaller parts.

    Args:
        model: the model, with the weights to use.
        request: which images, and how.
        ranks: the processes that share the work; ``None`` for this one alone.
        context: entered around each batch, for the precision of the network.
        done: first index of each batch that exists already; the other batches of ``batch_size``, the same ones on any
            number of ranks, are distributed over the ranks. ``None`` to divide the images evenly among the ranks.

    Yields:
        The range (seed, start, stop), and its images (stop - start, c, h, w) in the data's own values, on the model's
        device.

    Raises:
        UserError: the request does not fit the model, or what it returns are no such images.
    """
    check_request(model, request)
    assert isinstance(model, nn.Module), "a generator is a LightningModule"
    ranks = ranks or Ranks()
    size = request.batch_size
    if done is None:
        mine = split_evenly(request.n, request.seed, size, ranks)
    else:
        todo = [each for each in split_ranges(request.n, request.seed, size, Ranks()) if each[1] not in done]
        mine = todo[ranks.rank :: ranks.world_size]
    with evaluation_mode(model):
        for batch in mine:
            parts, (_, at, stop) = [], batch
            while at < stop:
                end = min(at + size, stop)
                try:
                    with context():
                        parts.append(model.generate(request, at, end))
                    check_images(model, parts[-1], end - at)
                    at = end
                    continue
                except torch.OutOfMemoryError:
                    if end - at == 1:
                        raise
                    size = (end - at) // 2
                report(f"a batch of {end - at} images does not fit into memory; continuing with {size} at a time")
                torch.cuda.empty_cache()
            yield batch, torch.cat(parts)


def list_labels(model: DDPM, request: SampleRequest) -> Tensor | None:
    """Return the class of each image of a request, (n,) int64 on the CPU; ``None`` where there are none."""
    if not model.class_names or not model.condition_format.kinds:
        return model.choose_labels(request, 0, request.n)
    starts = range(0, request.n, 256)  # datasets have other conditions, such as images, beside the labels
    found = [model.choose_condition(request, each, min(each + 256, request.n)).label for each in starts]
    return torch.cat([each for each in found if each is not None]) if found[0] is not None else None


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode without gradients; restore its mode afterwards, also after an exception."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
