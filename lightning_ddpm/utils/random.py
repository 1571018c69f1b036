"""Random numbers that depend on their purpose and key alone, not on the numbers generated before.

There is no global state: the noise of training step 7 on rank 1 is the same whether or not the run was interrupted, and
differs from that of rank 0.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def make_generator(device: torch.device | str, purpose: str, *key: int, index: int = 0) -> torch.Generator:
    """Return a seeded generator for a purpose, a key and an index.

    Args:
        device: device of the generator; CPU and GPU generate different numbers.
        purpose: distinguishes uses with equal keys.
        key: integers such as seed and rank.
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


class ImageNoise:
    """A function that returns new standard normal noise for the images ``start``..``stop`` at every call.

    Image i gets the same noise in a batch of any size, because noise is generated in fixed blocks of indices: a batch
    generates every block that it overlaps and keeps its own part. 50,000 images need 3,125 generators, not 50,000.

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
        noise = [torch.randn(shape, generator=each, device=like.device, dtype=like.dtype) for each in self.generators]
        first = self.start % self.BLOCK
        return torch.cat(noise)[first : first + self.stop - self.start]
