"""Feature networks. The name of a metric names its network and its protocol."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA, FeatureExtractorDinoV2

from lightning_ddpm.data.value_range import DTYPES, UINT8, ValueRange
from lightning_ddpm.metrics.resize import TF1, Resize
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import hash_file, hash_tensors
from lightning_ddpm.utils.image_size import ImageSize, format_size, shorten_size
from lightning_ddpm.utils.precision import compute_exactly


class FeatureExtractor(nn.Module, ABC):
    """Computes features of images.

    Attributes:
        metric: name of the Fréchet distance between these features in logs: ``fid``, ``fid_...`` or ``fd_...``.
        num_features: length of a feature vector.
        protocol: network, weights and resize in words, part of the key of cached statistics.
        classes: number of logits; ``None`` where the network has none.
        values: type and range of the values of the images that it takes.
    """

    metric: str
    num_features: int
    protocol: str
    classes: int | None = None
    values: ValueRange = UINT8

    @abstractmethod
    def load(self) -> None:
        """Find and check the weights; called on rank 0 first, then on the other ranks, before any image.

        Raises:
            UserError: the weights are missing or are not the expected ones.
        """

    @abstractmethod
    def check_images(self, channels: int, size: ImageSize) -> None:
        """Raise UserError if the network cannot take images of this shape; ``size`` is an int for a square."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (b, num_features) float32 of images (b, c, h, w) in their own values, outside autocast."""

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features of :meth:`forward` and, from the same pass, logits (b, classes) where there are any."""
        return self(pixels), None

    def with_resize(self, resize: Resize) -> "FeatureExtractor":
        """Return the same network with another resize in front.

        Raises:
            UserError: this network has a single protocol.
        """
        raise UserError(f"{type(self).__name__} has only one protocol; leave {type(resize).__name__} out")

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the loaded weights, for the provenance of a metric."""
        return hash_tensors(self.state_dict())


def check_extractor(extractor: FeatureExtractor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Check that a feature network takes images (c, h, w) of this shape, kept as tensors of this type.

    Raises:
        UserError: it does not.
    """
    extractor.check_images(shape[0], shorten_size(shape[1:]))
    if dtype != DTYPES[extractor.values.dtype]:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{type(extractor).__name__} needs images of {extractor.values.dtype} with values "
            f"{extractor.values.describe()}, and these are {kind}; use ClassifierFeatures of a classifier of such "
            "images, or the metrics spectrum and marginals, which need no network"
        )


def compute_features(extractor: FeatureExtractor, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Compute a batch's features and, where the network has them, logits.

    Images on any device and in any memory layout give the same features up to the rounding of float32 sums: they are
    copied into one layout, and the arithmetic is :func:`float32's <compute_exactly>`.

    Args:
        extractor: loaded feature network, on the device.
        pixels: images (b, c, h, w) in their own values.
        device: where the features are computed.

    Returns:
        Features (b, num_features) float32, and logits (b, classes) or ``None``.
    """
    with compute_exactly():
        return extractor.features_and_logits(pixels.to(device).clone(memory_format=torch.contiguous_format))


class DINOv2(FeatureExtractor):
    """DINOv2's features through torch-fidelity: closer to human perception than Inception's (arXiv:2306.04675).

    The code and the weights come from facebookresearch/dinov2 by torch.hub, which runs that code here.

    Args:
        model: dinov2-vit-s-14, dinov2-vit-b-14, dinov2-vit-l-14 or dinov2-vit-g-14.
    """

    def __init__(self, model: str = "dinov2-vit-l-14") -> None:
        super().__init__()
        if model not in MODEL_METADATA:
            raise UserError(f"there is no DINOv2 model {model!r}; there are {', '.join(MODEL_METADATA)}")
        self.model = model
        self.metric = f"fd_{MODEL_METADATA[model]}"
        self.num_features = {"s": 384, "b": 768, "l": 1024, "g": 1536}[model.split("-")[2]]
        self.protocol = f"{model}, {TF1.description}"
        self.network: nn.Module | None = None

    def load(self) -> None:
        if self.network is None:
            try:
                self.network = FeatureExtractorDinoV2(self.model, ["dinov2"])
            except (OSError, RuntimeError, ImportError) as error:
                raise UserError(
                    f"torch.hub could not download {self.model} ({first_line(error)}); run once with a network "
                    f"connection, or copy its folder and weights to {torch.hub.get_dir()}"
                ) from error

    def check_images(self, channels: int, size: ImageSize) -> None:
        if channels not in (1, 3):
            raise UserError(f"DINOv2 takes grayscale or RGB images, got {channels} channels")

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.network is not None, "load() comes first"
        return self.network(pixels.expand(-1, 3, -1, -1))[0]  # type: ignore[no-any-return]


class ModuleFeatures(FeatureExtractor):
    """Wraps any network that maps images (b, c, h, w), as models are trained on them, to features (b, d).

    Args:
        network: the network, with its weights.
        num_features: d.
        name: suffix of the metrics' names, as in ``fd_<name>``.
        values: type and range of the images' values; uint8 become floats in [-1, 1].
    """

    def __init__(self, network: nn.Module, num_features: int, name: str, values: ValueRange = UINT8) -> None:
        super().__init__()
        self.values = values
        self.network = network.eval().requires_grad_(False)
        self.num_features, self.metric = num_features, f"fd_{name}"
        self.protocol = f"{type(network).__name__} {self.weights_sha256()[:12]}"

    def load(self) -> None:
        pass

    def check_images(self, channels: int, size: ImageSize) -> None:
        pass

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(self.values.to_float(pixels))
        if features.shape != (len(pixels), self.num_features):
            raise UserError(
                f"the feature network returns {tuple(features.shape)} for {len(pixels)} images and num_features is "
                f"{self.num_features}; make it return ({len(pixels)}, {self.num_features})"
            )
        return features.float()


class CNNFeatures(FeatureExtractor):
    """The penultimate layer of a :class:`SmallCNN`, and its logits.

    Attributes:
        network: the classifier; subclasses set it, at the latest in :meth:`load`.
    """

    network: SmallCNN

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features_and_logits(pixels)[0]

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.network.embed(self.values.to_float(pixels))
        return features, self.network.head(features)


class DigitsFeatures(CNNFeatures):
    """A small classifier of 8x8 digits whose weights come with the package: a Fréchet distance without a download.

    Trained by configs/digits_features.yaml. Its metrics are comparable with each other and with nothing else.
    """

    metric = "fd_digits"
    num_features = 64
    classes = 10
    weights = Path(__file__).parent / "digits_features.pt"
    expected = "e8866416b9755dd898bb9f48205a8ff8e94bfbceabbc8a40e7b46a26951f19e8"

    def __init__(self) -> None:
        super().__init__()
        self.protocol = f"digits classifier {self.expected[:12]}, penultimate layer"
        with torch.random.fork_rng(devices=[]):  # evaluating a run must not change its initial weights
            network = SmallCNN(channels=1, size=8, classes=10, features=self.num_features)
        self.network = network.eval().requires_grad_(False)

    def load(self) -> None:
        if hash_file(self.weights) != self.expected:
            raise UserError(f"{self.weights} is not the file that was shipped; install the package again")
        self.network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))

    def check_images(self, channels: int, size: ImageSize) -> None:
        if (channels, size) != (1, 8):
            raise UserError(f"DigitsFeatures takes images of 1x8x8, got {channels}x{format_size(size)}; use Inception")
