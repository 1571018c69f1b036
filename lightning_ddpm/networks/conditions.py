"""How a network takes what images are conditioned on: one embedding for each kind of :class:`Condition`.

A config lists those of a network in ``conditions``. An embedding of the user's is a subclass of one of these classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_ddpm.utils.condition import Condition, ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize


class ConditionEmbedding(nn.Module, ABC):
    """Gives a network one kind of condition.

    It is made by the config, without knowing the network, which calls :meth:`build` when its own layers are there.

    Attributes:
        kind: the name of the kind, a field of :class:`Condition`.
        comes_from_data: whether images are conditioned on it when they are sampled, and so the data must have it.
    """

    kind: str
    comes_from_data = True

    @abstractmethod
    def build(self, dim: int) -> None:
        """Make the layers.

        Args:
            dim: length of the network's embedding of the timestep.
        """

    @classmethod
    def get_data_arguments(cls, given: ConditionFormat) -> Mapping[str, Any]:
        """Return the arguments that are ``null`` on the command line for those of the data.

        Raises:
            UserError: the data have no condition of this kind.
        """
        return {}

    @property
    def format(self) -> ConditionFormat:
        """What it needs of the data."""
        return ConditionFormat()

    def measure(self, values: Tensor) -> None:
        """Adapt to the conditions of all training images, (n, ...), before the first step of a run."""


class AddedCondition(ConditionEmbedding):
    """A condition whose embedding is added to that of the timestep."""

    @abstractmethod
    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return the embedding (b, dim).

        Args:
            condition: of b images, or ``None`` in its field if it is hidden from all; the embedding must depend on all
                parameters even then, because every step of every rank needs a gradient for them.
            t: (b,) timesteps, for their number and device.
        """


class EarlyCondition(ConditionEmbedding):
    """A condition that is added to the features of the timestep, before the layers that embed them.

    :meth:`build` gets the number of the features.
    """

    @abstractmethod
    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return what is added (b, features); see :meth:`AddedCondition.forward`."""


class ConcatenatedCondition(ConditionEmbedding):
    """A condition that is concatenated to the channels of x_t.

    Attributes:
        channels: number of its channels.
    """

    channels: int

    def fit_images(self, channels: int, size: ImageSize) -> None:
        """Adapt to the network's images, before :attr:`channels` is read; most conditions do not depend on them."""
        return

    @abstractmethod
    def forward(self, condition: Condition, x_t: Tensor) -> Tensor:
        """Return x_t (b, c, h, w) with the channels of the condition, which may be hidden from all images."""


class Conditions(nn.ModuleList):
    """A network's embeddings of all kinds of condition.

    Args:
        embeddings: as the config lists them, at most one for each kind; they are built by :meth:`build`.
        channels, size: of the network's images; ``None`` where no embedding needs them.
    """

    def __init__(
        self, embeddings: Sequence[ConditionEmbedding] = (), channels: int | None = None, size: ImageSize | None = None
    ) -> None:
        super().__init__(embeddings)
        kinds = [each.kind for each in embeddings]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise UserError(f"conditions has two embeddings of the kind {twice[0]}; give one of them")
        if channels and size:
            for each in embeddings:
                if isinstance(each, ConcatenatedCondition):
                    each.fit_images(channels, size)

    @property
    def channels(self) -> int:
        """Number of channels that are concatenated to x_t."""
        return sum(each.channels for each in self if isinstance(each, ConcatenatedCondition))

    def build(self, dim: int, features: int | None = None) -> None:
        """Make the layers; see :class:`ConditionEmbedding`.

        Args:
            dim: length of the embedding of the timestep.
            features: number of the features that it is computed from, in a network that calls :meth:`embed_time`.

        Raises:
            UserError: an early condition is in a network without such features.
        """
        for each in self:
            assert isinstance(each, ConditionEmbedding)
            if not isinstance(each, EarlyCondition):
                each.build(dim)
            elif features is None:
                raise UserError(
                    f"{type(each).__name__} is added to the features of the timestep, which this network does not "
                    "give; use UNet or DiT, or an AddedCondition"
                )
            else:
                each.build(features)

    def embed_time(self, embed: nn.Sequential, condition: Condition, t: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the embedding of the timesteps (b, dim): the layers of ``embed``, of which the first makes features.

        Early conditions are added to the features, and so is ``added`` (b, features).
        """
        early = [each for each in self if isinstance(each, EarlyCondition)]
        if not early and added is None:
            return embed(t)  # type: ignore[no-any-return]
        h = embed[0](t) if added is None else embed[0](t) + added
        for each in early:
            h = h + each(condition, t)
        for index in range(1, len(embed)):
            h = embed[index](h)
        return h  # type: ignore[no-any-return]

    def add(self, embedding: Tensor, condition: Condition, t: Tensor) -> Tensor:
        """Add the embeddings of the condition to that of the timestep, (b, dim)."""
        for each in self:
            if isinstance(each, AddedCondition):
                embedding = embedding + each(condition, t)
        return embedding

    def concatenate(self, x_t: Tensor, condition: Condition) -> Tensor:
        """Return x_t (b, c, h, w) with :attr:`channels` more channels."""
        for each in self:
            if isinstance(each, ConcatenatedCondition):
                x_t = each(condition, x_t)
        return x_t
