"""Shows whether the model has memorised its training images."""

import math
import textwrap
from collections.abc import Iterator

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks import trainer_access
from lightning_ddpm.callbacks.interval import Interval, Measurement
from lightning_ddpm.callbacks.plots import create_figure, render_figure
from lightning_ddpm.callbacks.run_logger import log_image
from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.metrics import FeatureExtractor, NeighbourDistances, extract_features, find_nearest
from lightning_ddpm.metrics.feature_table import FeatureTable
from lightning_ddpm.metrics.nearest_neighbours import MIN_HELD_OUT, QUANTILE
from lightning_ddpm.metrics.suite import map_metric_names
from lightning_ddpm.models.image_generator import require_generator, require_uint8
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

GAP = 8
"""Additional white pixels between a generated image and its nearest training images."""


class Memorisation(Measurement):
    """Finds the un-augmented training images nearest to n generated ones, on all ranks, with EMA weights.

    Distances are Euclidean, in a network's features. The callback logs ``val/memorisation_<network>``, the share of
    generated images that are no farther from the training set than the nearest 5 per cent of the held-out images. It is
    about 0.05 for a model whose images are as far from its training images as new real ones, and near 1 for a model
    that copies; if it is far below 0.05, the images are unlike any real ones. Meehan et al. 2020 (arXiv:2004.05675)
    compare with held-out images; Ho et al. 2020 (arXiv:2006.11239) and Carlini et al. 2023 (arXiv:2301.13188) show
    panels of nearest images. With fewer than 20 held-out images there is no such quantile, and only the panel is made.

    The panel has a row for each of the first images: the image, then its nearest training images, nearest first. It is
    a TensorBoard image and ``memorisation-<step>.png`` in the run's folder ``samples``, and
    ``memorisation-<step>-distances.png`` is a histogram of the distances from generated and from held-out images to
    their nearest training image. The callback runs in fit at its interval, or once at the end if it has none, and in
    test, whose files have ``test`` in place of the step.

    Attributes:
        proximity: the last distances.

    Args:
        extractor: the feature network.
        n: number of images to generate, and of held-out images at most.
        shown: number of generated images in the panel.
        neighbours: number of training images beside each.
        every_n_steps: interval in optimizer steps, or
        every_n_epochs: in epochs; give one of the two, or neither for the end of fit.
        sampler: the sampler; ``null`` for the model's own.
        batch_size: images generated at a time.
        seed: seed of the set of images.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        n: int,
        shown: int = 8,
        neighbours: int = 4,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if not 1 <= shown <= n or neighbours < 1 or batch_size < 1:
            raise UserError(
                "the memorisation panel shows at least 1 of its n images beside at least 1 neighbour, generated in "
                f"batches of at least 1; got shown={shown}, n={n}, neighbours={neighbours}, batch_size={batch_size}"
            )
        super().__init__(Interval.or_end(every_n_steps, every_n_epochs))
        self.extractor, self.shown, self.neighbours = extractor, shown, neighbours
        self.request = SampleRequest(n, seed, batch_size, sampler)
        self.proximity: NeighbourDistances | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the extractor's weights, and refuse before any work what cannot be measured."""
        if stage not in ("fit", "test"):
            return
        require_uint8(require_generator(pl_module), "Memorisation")
        trainer_access.prepare_evaluation(trainer, pl_module, self.extractor, self.request)
        training = self._data(trainer).train
        if self.neighbours > len(training):
            raise UserError(
                f"there are {len(training)} training images and the memorisation panel shows {self.neighbours} "
                "neighbours; lower neighbours"
            )

    def measure(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Search with the averaged weights; return the share, or nothing if too few images are held out."""
        data, shape = self._data(trainer), require_generator(module).image_shape
        ranks = trainer_access.get_ranks(trainer)
        first = FeatureTable(self.shown, math.prod(shape))  # pixels, integers that float32 represents exactly

        def images() -> Iterator[tuple[int, Tensor]]:
            for start, pixels in trainer_access.generate_images(trainer, module, self.request, "memorisation"):
                if start < self.shown:
                    first.put(start, pixels[: self.shown - start].flatten(1).float())
                yield start, pixels

        features = extract_features(self.extractor, module.device, self.request.n, images(), ranks)
        show = trainer_access.show_work(trainer, "training images")
        training = data.train
        found = find_nearest(
            self.extractor, features, self.neighbours, training, data.held_out, ranks, show, data.num_workers
        )
        self.proximity = found
        samples = first.gather(ranks, module.device).to(torch.uint8).reshape(-1, *shape)
        if trainer.is_global_zero:
            self._report(trainer, stage, found, build_panel(samples, training, found.indices[: self.shown]))
        return {} if found.share is None else {self._name(stage): found.share}

    def _name(self, stage: str) -> str:
        return f"{stage}/{map_metric_names(self.extractor.metric)['memorisation']}"

    def _data(self, trainer: Trainer) -> ImageDataModule:
        return trainer_access.require_image_data(trainer, "Memorisation searches an ImageDataModule's training set")

    def announce(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Print the cost, and whether the share cannot be computed."""
        data, model = self._data(trainer), require_generator(module)
        if trainer.is_global_zero:
            report(
                f"memorisation: {trainer_access.describe_work(model, self.request)} "
                f"and one pass over {len(data.train)} training images, {when}"
            )
            if min(self.request.n, len(data.held_out)) < MIN_HELD_OUT:
                report(
                    f"memorisation: the panel without the share, which needs at least {MIN_HELD_OUT} held-out images "
                    f"and n of at least {MIN_HELD_OUT}; got {len(data.held_out)} and n={self.request.n}"
                )

    def _report(self, trainer: Trainer, stage: str, found: NeighbourDistances, nearest: Tensor) -> None:
        name = self._name(stage)
        if found.share is None:
            title = f"{name}: {self.request.n} generated and {len(found.held_out)} held-out images"
        else:
            title = (
                f"{name} {found.share:.3g}: the share of {self.request.n} generated images no farther from the "
                f"training set than the nearest {QUANTILE:.0%} of {len(found.held_out)} held-out images"
            )
        report(title if stage == "test" else f"step {trainer.global_step}: {title}")
        distances = _plot_distances(found, title, self.extractor.protocol)
        stem = f"samples/memorisation-{'test' if stage == 'test' else f'{trainer.global_step:07d}'}"
        log_image(trainer, nearest, f"{stem}.png", f"{stage}/memorisation")
        log_image(trainer, distances, f"{stem}-distances.png", f"{stage}/memorisation_distances")


def build_panel(samples: Tensor, training: ImageDataset, indices: Tensor) -> Tensor:
    """Arrange a row for each sample, under titles: the sample, a gap, and the training images with its indices.

    Args:
        samples: (n, c, h, w) uint8.
        training: the images to show beside them.
        indices: (n, k), nearest first.

    Returns:
        (3, H, W) uint8.
    """
    n, k = indices.shape
    images, _ = training.__getitems__(indices.flatten().tolist())
    rows = torch.cat([samples[:, None], images.reshape(n, k, *images.shape[1:])], dim=1)
    titles = ["sample", "nearest", *(_format_ordinal(i) for i in range(2, k + 1))]
    grid = arrange_grid(rows.flatten(0, 1), k + 1, titles)
    cut = grid.shape[2] // (k + 1)
    return torch.cat([grid[..., :cut], grid.new_full((3, grid.shape[1], GAP), 255), grid[..., cut:]], dim=2)


def _format_ordinal(n: int) -> str:
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def _plot_distances(found: NeighbourDistances, title: str, protocol: str) -> Tensor:
    """Plot histograms of the distances to the nearest training image, generated and held out, as (3, H, W) uint8."""
    figure = create_figure()
    axes = figure.add_subplot(xlabel=f"distance to the nearest training image ({protocol})", ylabel="share of images")
    axes.set_title(textwrap.fill(title, 90), fontsize="medium")
    sets = {"generated": found.distances[:, 0], "held out": found.held_out}
    finite = {label: each[each.isfinite()] for label, each in sets.items()}
    farthest = max((float(each.max()) for each in finite.values() if len(each)), default=0.0)
    for label, each in finite.items():
        if len(each):
            weights = torch.full_like(each, 1 / len(each)).numpy()
            bins = np.linspace(0, farthest or 1.0, 41).tolist()
            axes.hist(each.numpy(), bins=bins, weights=weights, histtype="stepfilled", alpha=0.5, label=label)
    if found.near is not None:
        axes.axvline(found.near, color="black", linestyle="--", label=f"{QUANTILE:.0%} of held out: {found.near:.3g}")
    axes.legend()
    return render_figure(figure)
