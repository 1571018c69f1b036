"""The feature network of the FID (Heusel et al. 2017, arXiv:1706.08500), with weights checked by their SHA-256."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from lightning_ddpm.metrics.extractors import FeatureExtractor
from lightning_ddpm.metrics.resize import TF1, Resize
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import hash_file, hash_tensors
from lightning_ddpm.utils.image_size import ImageSize
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.torch_files import read_torch_file

FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of weights-inception-2015-12-05-6726825d.pth as torch-fidelity and pytorch-fid publish it."""
TENSORS_SHA256 = "d12a7d3f924ce190eb54499fa28ea663e531484afd56385aeae412f30114e3e8"
"""SHA-256 of the same weights' names and bytes without the class layer, which the features do not need."""


class Inception(FeatureExtractor):
    """The FID's own network: torch-fidelity's Inception-v3 (2015-12-05), pool features of images resized to 299x299.

    Args:
        weights_path: the file of weights; ``null`` for torch.hub's cache, where they are downloaded once.
        resize: ``null`` for TF1's, the only one that gives the published FID.

    Attributes:
        cpu_batch_size: number of images in one pass on a CPU, where more are not faster; a GPU takes all at once.
    """

    metric = "fid"
    num_features = 2048
    cpu_batch_size = 8

    def __init__(self, weights_path: str | None = None, resize: Resize | None = None) -> None:
        super().__init__()
        self.weights_path, self.resize = weights_path, resize or TF1()
        self.network: Any = None
        self.protocol = f"Inception 2015-12-05, {self.resize.description}"
        if self.resize.suffix:
            self.metric = f"fid_{self.resize.suffix}"

    def load(self) -> None:
        if self.network is None:
            state, is_published = _read_weights(
                resolve_path(self.weights_path) if self.weights_path else _download_weights()
            )
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            # torch-fidelity unpickles any file that it is given, so it is given the checked weights only
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
            self.network = _fold_batch_norms(network).to(memory_format=torch.channels_last)
            self.classes = len(state["fc.weight"]) if is_published else None

    def check_images(self, channels: int, size: ImageSize) -> None:
        if channels not in (1, 3):
            raise UserError(f"Inception takes grayscale or RGB images, got {channels} channels")

    def with_resize(self, resize: Resize) -> "Inception":
        other = Inception(self.weights_path, resize)
        other.network, other.classes = self.network, self.classes
        return other

    def weights_sha256(self) -> str:
        return TENSORS_SHA256  # load() has compared them

    def forward(self, pixels: Tensor) -> Tensor:
        parts = torch.split(pixels, self.cpu_batch_size) if pixels.device.type == "cpu" else [pixels]
        return torch.cat([self._pool(part) for part in parts])

    def _pool(self, pixels: Tensor) -> Tensor:
        assert self.network is not None, "load() comes first"
        x = self.resize(pixels.expand(-1, 3, -1, -1).float(), FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE)
        x = (x - 128) / 128
        for name, layer in self.network.named_children():  # in the order of the network
            if name != "fc":
                x = layer(x)
        return x.flatten(1)

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features and the logits without the class layer's bias, as in every published Inception Score."""
        features = self(pixels)
        return features, None if self.classes is None else features @ self.network.fc.weight.T


def _fold_batch_norms(network: nn.Module) -> nn.Module:
    """Return the network with its batch norms folded into the convolutions before them: equal to float32's rounding.

    With channels last, a CPU takes 1.4 to 1.6 times as many images per second.
    """
    for module in network.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm.eval()), nn.Identity()
    return network


def _download_weights() -> Path:
    """Return the file in torch.hub's cache, downloaded if it is not there."""
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=FILE_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the FID needs Inception's weights, and they could not be downloaded ({first_line(error)}): (1) run "
                f"once with a network connection, or (2) put {URL_INCEPTION_V3} at {path}, or give its path, for "
                "evaluate as --weights_path and in a config as weights_path of Inception, or (3) choose another "
                "extractor, or remove the callback"
            ) from error
    return path


def _read_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the weights, and whether the class layer is the published one, too."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path} with Inception's weights; fix weights_path, or leave it out to download them"
        )
    is_published = hash_file(path) == FILE_SHA256
    try:
        # the published file may be in torch's old format; any other must have the present one, whose sizes are checked
        load = partial(torch.load, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = load(path) if is_published else read_torch_file(path, "a file of weights")
        tensors = hash_tensors({name: value for name, value in state.items() if not name.startswith("fc.")})
    except Exception as error:  # unpickling a file that is no pickle can raise anything
        raise UserError(f"{path} is refused as Inception's weights: {first_line(error)}") from error
    if tensors != TENSORS_SHA256 and not is_published:
        raise UserError(
            f"{path} does not hold the FID's Inception weights: the SHA-256 of its tensors is {tensors}, "
            f"expected {TENSORS_SHA256}; delete it and download it again"
        )
    return state, is_published
