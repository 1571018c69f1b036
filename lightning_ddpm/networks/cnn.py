"""A small convolutional classifier: the feature network of the digits' Fréchet distance."""

from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides, shorten_size


class SmallCNN(nn.Module):
    """Classifier of small images, whose penultimate activations are features for a Fréchet distance.

    It has three 3x3 convolutions (the second halves height and width), a linear layer of ``features`` units and a
    linear head.

    Args:
        channels: image channels. On the command line ``null`` takes the data's.
        size: image height and width, even: one number, or ``[height, width]``; ``null`` likewise.
        classes: number of classes; ``null`` likewise.
        width: channels of the first convolution; the others have twice as many.
        features: number of features.
        dropout: dropout probability before the linear layer and before the head.

    Raises:
        UserError: the images' shape or the number of classes is missing, or ``size`` is odd.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: ImageSize | None = None,
        classes: int | None = None,
        width: int = 24,
        features: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not channels or not size or not classes:
            raise UserError(
                f"SmallCNN needs channels, size and classes, got {channels}, {size} and {classes}; use labelled images"
            )
        sides = get_sides(size)
        if any(side % 2 for side in sides):
            raise UserError(f"size must be even, got {size}")
        self.channels, self.size, self.classes, self.features = channels, shorten_size(size), classes, features
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * (sides[0] // 2) * (sides[1] // 2), features),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))

    def embed(self, x: Tensor) -> Tensor:
        """Map images (b, channels, height, width) in [-1, 1] to features (b, features)."""
        return self.body(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, channels, height, width) in [-1, 1] to logits (b, classes)."""
        return self.head(self.embed(x))  # type: ignore[no-any-return]
