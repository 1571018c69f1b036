"""Random numbers that depend on their purpose and key alone, not on the numbers generated before.

There is no global state: the noise of training step 7 is the same whether or not the run was interrupted, and on any
number of devices.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor


def make_generator(device: torch.device | str, purpose: str, *key: int, index: int = 0) -> torch.Generator:
    """Return a seeded generator for a purpose, a key and an index.

    Args:
        device: device of the generator; CPU and GPU generate different numbers.
        purpose: distinguishes uses with equal keys.
        key: integers such as the seed.
        index: counts the uses of one (purpose, key); different indices never have the same seed.
    """
    digest = hashlib.blake2b(repr((purpose, key)).encode(), digest_size=4).digest()
    # torch's CPU generator uses 32 bits of a seed. The key is hashed to them; the index is added and cannot collide.
    return torch.Generator(device).manual_seed((int.from_bytes(digest, "big") + index) % 2**32)


@contextmanager
def seed_globally(device: torch.device, purpose: str, *key: int, index: int = 0) -> Iterator[None]:
    """Seed torch's global generators like :func:`make_generator` inside the context, for dropout, which takes none.

    On exit their previous states are restored.
    """
    seed, gpus = make_generator("cpu", purpose, *key, index=index).initial_seed(), []
    if device.type == "cuda":
        gpus = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(gpus):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            generator.manual_seed(seed)
        yield


def get_run_seed() -> int:
    """Return the seed of the run, which ``seed_everything`` stores in the environment, or 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


GPU_VALUES = 40_960
"""Most values that one call generates on a GPU: one for each thread that a T4 (40 multiprocessors) has room for."""


def generate_normal(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return standard normal numbers, on every model of GPU with at least 40,960 threads the same ones.

    torch (``calc_execution_policy`` in ATen/native/cuda/DistributionTemplates.h) starts a thread for each value, but no
    more than the GPU has room for. Further values come from the same threads, so that they depend on the model. Larger
    tensors are therefore generated in parts.
    """
    if device.type != "cuda":
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    values = torch.empty(shape, device=device, dtype=dtype)
    for part in torch.split(values.view(-1), GPU_VALUES):
        part.normal_(generator=generator)
    return values


class ImageNoise:
    """A function that returns new standard normal noise for the images ``start``..``stop`` at every call.

    Image i gets the same noise in a batch of any size, because noise is generated in fixed blocks of indices: a batch
    generates every block that it overlaps and keeps its own part. 50,000 images need 3,125 generators, not 50,000. On
    all GPUs the noise is the same: see :func:`generate_normal`.

    Args:
        seed: seed of the generated images.
        start, stop: the images, as ``range(start, stop)``.
        purpose: see :func:`make_generator`; sampling uses ``image``.
    """

    BLOCK = 16

    def __init__(self, seed: int, start: int, stop: int, purpose: str = "image") -> None:
        self.seed, self.start, self.stop, self.purpose = seed, start, stop, purpose
        self.generators: list[torch.Generator] = []

    def __call__(self, like: Tensor) -> Tensor:
        """Return the next noise, with the shape (stop - start, ...), device and dtype of ``like``."""
        if not self.generators:
            blocks = range(self.start // self.BLOCK, (self.stop - 1) // self.BLOCK + 1)
            self.generators = [make_generator(like.device, self.purpose, self.seed, index=block) for block in blocks]
        shape = (self.BLOCK, *like.shape[1:])
        each_block = [generate_normal(shape, each, like.device, like.dtype) for each in self.generators]
        noise, first = each_block[0] if len(each_block) == 1 else torch.cat(each_block), self.start % self.BLOCK
        return noise[first : first + self.stop - self.start]


class PositionRandom:
    """Random numbers of the positions ``start``..``stop`` among ``total``, whichever parts they are generated in.

    They are generated in blocks of positions with a generator each: a part generates every block that it overlaps and
    keeps its own positions. Calls continue the same generators.

    Args:
        device, purpose, index: see :func:`make_generator`.
        key: likewise; the block's number follows it, unless there is one block only.
        start, stop: the positions, as ``range(start, stop)``.
        total: number of all positions; the last block may be short.
        block: number of positions in a block; ``None`` for one block of all.
    """

    BLOCK = 128
    """As many as a step of Ho et al.'s CIFAR-10 model has."""

    def __init__(
        self,
        device: torch.device | str,
        purpose: str,
        *key: int,
        index: int,
        start: int,
        stop: int,
        total: int,
        block: int | None = BLOCK,
    ) -> None:
        size = block or total
        first = start // size
        self._n, self._first = stop - start, start - first * size
        self._blocks = [
            (
                min(size, total - number * size),
                make_generator(device, purpose, *key, *((number,) if block else ()), index=index),
            )
            for number in range(first, -(-stop // size))
        ]

    @overload
    def __call__(self, sample: Callable[[int, torch.Generator], Tensor]) -> Tensor: ...
    @overload
    def __call__(self, sample: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]: ...
    def __call__(self, sample: Callable[[int, torch.Generator], Any]) -> Any:
        """Return the random numbers of these positions, (stop - start, ...).

        Args:
            sample: returns those of n positions from a generator, (n, ...): one tensor, or two.
        """
        parts = [sample(size, generator) for size, generator in self._blocks]
        if isinstance(parts[0], Tensor):
            return self._select(parts)
        return tuple(self._select(each) for each in zip(*parts, strict=True))

    def rand(self) -> Tensor:
        """Return uniform numbers in [0, 1), (stop - start,) float32."""
        return self(lambda n, generator: torch.rand(n, device=generator.device, generator=generator))

    def randn_like(self, x: Tensor) -> Tensor:
        """Return standard normal noise with the shape (stop - start, ...), device and dtype of ``x``."""
        shape = x.shape[1:]
        return self(lambda n, each: torch.randn((n, *shape), device=x.device, dtype=x.dtype, generator=each))

    def _select(self, parts: Sequence[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat([*parts])
        return whole if len(whole) == self._n else whole[self._first : self._first + self._n]
