"""Feature networks of figures. The name of a figure says which network, and which protocol, it is from."""

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA, FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.metrics.resize import TF1, Resize
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import hash_file, hash_tensors

INCEPTION_FILE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of weights-inception-2015-12-05-6726825d.pth as torch-fidelity and pytorch-fid publish it."""
INCEPTION_TENSORS = "d12a7d3f924ce190eb54499fa28ea663e531484afd56385aeae412f30114e3e8"
"""SHA-256 of the same weights' names and bytes without the class layer, which features do not need."""


class FeatureExtractor(nn.Module, ABC):
    """Turns uint8 images into features.

    Attributes:
        metric: what the Fréchet distance in these features is called in logs: ``fid``, ``fid_...`` or ``fd_...``.
        num_features: length of a feature vector.
        protocol: network, weights and resize in words, part of the key of cached statistics.
        classes: number of logits; ``None`` where the network has none.
    """

    metric: str
    num_features: int
    protocol: str
    classes: int | None = None

    @abstractmethod
    def load(self) -> None:
        """Find and check the weights; called on one rank first, then on the others, before any image.

        Raises:
            UserError: they are missing or not what they should be.
        """

    @abstractmethod
    def check_images(self, channels: int, size: int) -> None:
        """Raise UserError if images of this shape cannot be judged."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """(b, c, h, w) uint8 -> (b, num_features) float32, outside autocast."""

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as :meth:`forward` gives them and, from the same pass, logits (b, classes) where there are any."""
        return self(pixels), None

    def with_resize(self, resize: Resize) -> "FeatureExtractor":
        """The same network behind another resize.

        Raises:
            UserError: this one has a single protocol.
        """
        raise UserError(f"{type(self).__name__} has no other protocol than its own; leave {type(resize).__name__} out")

    def weights_sha256(self) -> str:
        """What the loaded weights are, for the provenance of a figure."""
        return hash_tensors(self.state_dict())


class Inception(FeatureExtractor):
    """The FID's own network: torch-fidelity's Inception-v3 (2015-12-05), pool features of images resized to 299x299.

    Args:
        weights_path: the file of weights; ``null`` for torch.hub's cache, downloaded there once.
        resize: ``null`` for TF1's, which alone makes the published FID.

    Attributes:
        at_a_time: images that go through the network together on a processor, where more are slower; a GPU takes all.
    """

    metric = "fid"
    num_features = 2048
    at_a_time = 4

    def __init__(self, weights_path: str | None = None, resize: Resize | None = None) -> None:
        super().__init__()
        self.weights_path, self.resize = weights_path, resize or TF1()
        self.network: Any = None
        self.protocol = f"Inception 2015-12-05, {self.resize.words}"
        if self.resize.suffix:
            self.metric = f"fid_{self.resize.suffix}"

    def load(self) -> None:
        if self.network is None:
            state, whole = _read_inception_weights(
                Path(self.weights_path) if self.weights_path else _download_inception()
            )
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            # torch-fidelity unpickles whatever file it is given: it is given what has been checked, and nothing else.
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
            self.classes = len(state["fc.weight"]) if whole else None

    def check_images(self, channels: int, size: int) -> None:
        if channels not in (1, 3):
            raise UserError(f"Inception judges grey or RGB images, got {channels} channels")

    def with_resize(self, resize: Resize) -> "Inception":
        other = Inception(self.weights_path, resize)
        other.network, other.classes = self.network, self.classes
        return other

    def weights_sha256(self) -> str:
        return INCEPTION_TENSORS  # load() has compared them

    def forward(self, pixels: Tensor) -> Tensor:
        parts = torch.split(pixels, self.at_a_time) if pixels.device.type == "cpu" else [pixels]
        return torch.cat([self._pooled(part) for part in parts])

    def _pooled(self, pixels: Tensor) -> Tensor:
        assert self.network is not None, "load() comes first"
        x = self.resize(pixels.expand(-1, 3, -1, -1).float(), FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE)
        x = (x - 128) / 128
        for name, layer in self.network.named_children():  # in the order of the network
            if name != "fc":
                x = layer(x)
        return x.flatten(1)

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits are without the class layer's bias, as in every published Inception Score."""
        features = self(pixels)
        if self.classes is None:
            return features, None
        return features, features @ self.network.fc.weight.T


def _download_inception() -> Path:
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


def _read_inception_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The weights, and whether their class layer too is the published one."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path} with Inception's weights; mend weights_path, or leave it out to download"
        )
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        tensors = hash_tensors({name: value for name, value in state.items() if not name.startswith("fc.")})
    except Exception as error:  # unpickling what is no pickle fails in any way
        raise UserError(f"{path} is refused as Inception's weights: {first_line(error)}") from error
    whole = hash_file(path) == INCEPTION_FILE
    if tensors != INCEPTION_TENSORS and not whole:
        raise UserError(
            f"{path} does not hold the FID's Inception weights: the SHA-256 of its tensors is {tensors}, "
            f"expected {INCEPTION_TENSORS}; delete it and download it again"
        )
    return state, whole


class DINOv2(FeatureExtractor):
    """DINOv2's features through torch-fidelity: closer to what people see than Inception's (arXiv:2306.04675).

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
        self.protocol = f"{model}, {TF1.words}"
        self.network: nn.Module | None = None

    def load(self) -> None:
        if self.network is None:
            try:
                self.network = FeatureExtractorDinoV2(self.model, ["dinov2"])
            except (OSError, RuntimeError, ImportError) as error:
                raise UserError(
                    f"{self.model} is fetched by torch.hub and could not be ({first_line(error)}); run once with a "
                    f"network, or copy its folder and weights to {torch.hub.get_dir()}"
                ) from error

    def check_images(self, channels: int, size: int) -> None:
        if channels not in (1, 3):
            raise UserError(f"DINOv2 judges grey or RGB images, got {channels} channels")

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.network is not None, "load() comes first"
        return self.network(pixels.expand(-1, 3, -1, -1))[0]  # type: ignore[no-any-return]


class ModuleFeatures(FeatureExtractor):
    """Any network of one's own: images (b, c, h, w) in [-1, 1] -> features (b, d).

    Args:
        network: the network, with its weights.
        num_features: d.
        name: what the figures end in, as in ``fd_<name>``.
    """

    def __init__(self, network: nn.Module, num_features: int, name: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_features, self.metric = num_features, f"fd_{name}"
        self.protocol = f"{type(network).__name__} {self.weights_sha256()[:12]}"

    def load(self) -> None:
        pass

    def check_images(self, channels: int, size: int) -> None:
        pass

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(to_float(pixels))
        if features.shape != (len(pixels), self.num_features):
            raise UserError(
                f"the feature network gives {tuple(features.shape)} for {len(pixels)} images and num_features is "
                f"{self.num_features}; make it give ({len(pixels)}, {self.num_features})"
            )
        return features.float()


class DigitsFeatures(FeatureExtractor):
    """A small classifier of 8x8 digits whose weights come with the package: a Fréchet distance that needs no network.

    Trained by configs/digits_features.yaml. Its figures compare with each other and with nothing else.
    """

    metric = "fd_digits"
    num_features = 64
    classes = 10
    weights = Path(__file__).parent / "digits_features.pt"
    expected = "e8866416b9755dd898bb9f48205a8ff8e94bfbceabbc8a40e7b46a26951f19e8"

    def __init__(self) -> None:
        super().__init__()
        self.protocol = f"digits classifier {self.expected[:12]}, penultimate layer"
        with torch.random.fork_rng(devices=[]):  # what judges a run must not change the weights that it starts from
            network = SmallCNN(channels=1, size=8, classes=10, features=self.num_features)
        self.network = network.eval().requires_grad_(False)

    def load(self) -> None:
        if hash_file(self.weights) != self.expected:
            raise UserError(f"{self.weights} is not the file that was shipped; install the package again")
        self.network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))

    def check_images(self, channels: int, size: int) -> None:
        if (channels, size) != (1, 8):
            raise UserError(f"DigitsFeatures judges images of 1x8x8, got {channels}x{size}x{size}; use Inception")

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features_and_logits(pixels)[0]

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.network.embed(to_float(pixels))
        return features, self.network.head(features)
