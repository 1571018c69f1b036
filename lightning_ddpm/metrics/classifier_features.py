"""A classifier that this package trained, as a feature network."""

from lightning_ddpm.metrics.extractors import CNNFeatures
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, format_size


class ClassifierFeatures(CNNFeatures):
    """The features of a classifier that this package trained, of any values and number of channels.

    configs/digits_features.yaml trains one. The range of the values is that of the classifier's own training.

    Args:
        ckpt: the classifier's checkpoint.
        name: suffix of the metrics' names, as in ``fd_<name>``.
    """

    def __init__(self, ckpt: str, name: str = "classifier") -> None:
        super().__init__()
        self.ckpt, self.metric = ckpt, f"fd_{name}"

    def load(self) -> None:
        if not hasattr(self, "network"):
            classifier = load(self.ckpt, ImageClassifier)
            self.network, self.values = classifier.network.eval().requires_grad_(False), classifier.values
            self.num_features, self.classes = self.network.features, self.network.classes
            self.protocol = f"classifier {self.weights_sha256()[:12]}, penultimate layer"

    def check_images(self, channels: int, size: ImageSize) -> None:
        self.load()
        c, s = self.network.channels, self.network.size
        if (channels, size) != (c, s):
            taken, given = f"{c}x{format_size(s)}", f"{channels}x{format_size(size)}"
            raise UserError(f"{self.ckpt} takes images of {taken}, got {given}; train one of these images")
