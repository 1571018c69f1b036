"""Feature networks of Fréchet distances. The name of a figure says which network it is from."""

import hashlib
import io
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from lightning_ddpm.errors import UserError, first_line
from lightning_ddpm.files import sha256
from lightning_ddpm.images import to_float
from lightning_ddpm.networks import ConvNet

INCEPTION_FILE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of weights-inception-2015-12-05-6726825d.pth as torch-fidelity and pytorch-fid publish it."""
INCEPTION_TENSORS = "d12a7d3f924ce190eb54499fa28ea663e531484afd56385aeae412f30114e3e8"
"""SHA-256 of the same weights' names and bytes without the class layer, which features do not need."""


class FeatureExtractor(nn.Module, ABC):
    """Turns uint8 images into features for a Fréchet distance.

    Attributes:
        metric: what the distance in these features is called in logs.
        num_features: length of a feature vector.
        protocol: network, weights and resize in words, part of the key of cached statistics.
    """

    metric: str
    num_features: int
    protocol: str

    @abstractmethod
    def load(self) -> None:
        """Find and check the weights; called on one rank first, then on the others, before any image.

        Raises:
            UserError: they are missing or not what they should be.
        """

    @abstractmethod
    def check(self, channels: int, size: int) -> None:
        """Raise UserError if images of this shape cannot be judged."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """(b, c, h, w) uint8 -> (b, num_features) float32, outside autocast."""


class Inception(FeatureExtractor):
    """The FID's own network: torch-fidelity's Inception-v3 (2015-12-05), pool features, TF1 bilinear resize to 299x299.

    Args:
        weights_path: the file of weights; ``null`` for torch.hub's cache, downloaded there once.
    """

    metric = "fid"
    num_features = 2048
    protocol = "Inception 2015-12-05, TF1 bilinear resize without antialiasing"

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        self.weights_path = weights_path
        self.network: nn.Module | None = None

    def load(self) -> None:
        if self.network is None:
            buffer = io.BytesIO()
            torch.save(_inception_weights(Path(self.weights_path) if self.weights_path else _downloaded()), buffer)
            buffer.seek(0)
            # torch-fidelity unpickles whatever file it is given: it is given what has been checked, and nothing else.
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)

    def check(self, channels: int, size: int) -> None:
        if channels not in (1, 3):
            raise UserError(f"Inception judges grey or RGB images, got {channels} channels")

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.network is not None, "load() comes first"
        return self.network(pixels.expand(-1, 3, -1, -1))[0]  # type: ignore[no-any-return]


def _downloaded() -> Path:
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_FILE, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the FID needs Inception's weights and they could not be downloaded ({error}). Three ways out: "
                f"(1) run once with a network; (2) put {URL_INCEPTION_V3} at {path}, or anywhere and "
                "name it as weights_path of the Inception extractor; (3) take the Evaluation callback out of the config"
            ) from error
    return path


def _inception_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"there is no file {path} with Inception's weights; mend weights_path, or leave it out to download"
        )
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        tensors = hashlib.sha256()
        for name in sorted(state):
            if not name.startswith("fc."):
                tensors.update(name.encode() + state[name].numpy().tobytes())
    except Exception as error:  # unpickling what is no pickle fails in any way
        raise UserError(f"{path} is refused as Inception's weights: {first_line(error)}") from error
    if tensors.hexdigest() != INCEPTION_TENSORS and sha256(path) != INCEPTION_FILE:
        raise UserError(
            f"{path} does not hold the FID's Inception weights: the SHA-256 of its tensors is {tensors.hexdigest()}, "
            f"expected {INCEPTION_TENSORS}; delete it and download it again"
        )
    return state


class DigitsFeatures(FeatureExtractor):
    """A small classifier of 8x8 digits whose weights come with the package: a Fréchet distance that needs no network.

    Trained by configs/digits_features.yaml. Its figures compare with each other and with nothing else.
    """

    metric = "fd_digits"
    num_features = 64
    weights = Path(__file__).parent / "digits_features.pt"
    expected = "e8866416b9755dd898bb9f48205a8ff8e94bfbceabbc8a40e7b46a26951f19e8"

    def __init__(self) -> None:
        super().__init__()
        self.protocol = f"digits classifier {self.expected[:12]}, penultimate layer"
        self.network = ConvNet(channels=1, size=8, classes=10, features=self.num_features).eval().requires_grad_(False)

    def load(self) -> None:
        if sha256(self.weights) != self.expected:
            raise UserError(f"{self.weights} is not the file that was shipped; install the package again")
        self.network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))

    def check(self, channels: int, size: int) -> None:
        if (channels, size) != (1, 8):
            raise UserError(f"DigitsFeatures judges images of 1x8x8, got {channels}x{size}x{size}; use Inception")

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.embed(to_float(pixels))
