"""A classifier that this package trained, as a feature network."""

from torch import Tensor

from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.metrics.extractors import FeatureExtractor
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError


class ClassifierFeatures(FeatureExtractor):
    """The features of a classifier that this package trained, as configs/digits_features.yaml does.

    Args:
        ckpt: the classifier's checkpoint.
        name: suffix of the metrics' names, as in ``fd_<name>``.
    """

    def __init__(self, ckpt: str, name: str = "classifier") -> None:
        super().__init__()
        self.ckpt, self.metric = ckpt, f"fd_{name}"
        self.network: SmallCNN | None = None

    def load(self) -> None:
        if self.network is None:
            network = load(self.ckpt, ImageClassifier).network
            self.network = network.eval().requires_grad_(False)
            self.num_features, self.classes = network.features, network.classes
            self.protocol = f"classifier {self.weights_sha256()[:12]}, penultimate layer"

    def check_images(self, channels: int, size: int) -> None:
        self.load()
        assert self.network is not None
        expected = self.network.channels, self.network.size
        if (channels, size) != expected:
            raise UserError(
                f"{self.ckpt} takes images of {expected[0]}x{expected[1]}x{expected[1]}, "
                f"got {channels}x{size}x{size}; use Inception"
            )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features_and_logits(pixels)[0]

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.network is not None, "load() comes first"
        features = self.network.embed(to_float(pixels))
        return features, self.network.head(features)
