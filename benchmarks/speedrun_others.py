"""The other programs of the speed run, each by its own classes, with its own defaults and with tuned settings."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.speedrun_clock import Clock
from lightning_ddpm.commands.precision import WORTHWHILE
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_io import save_image, to_float, to_uint8
from lightning_ddpm.utils.precision_probe import measure_bf16_speedup

BATCH = 250
"""Images that are sampled at a time."""
NFE = 50
"""Of both programs, by their DDIM."""
BF16 = ("bf16", "amp")
"""The settings for bfloat16, which a processor may be slower in."""


@cache
def is_bf16_faster() -> bool:
    """Return whether bfloat16 is measured to be worthwhile on this processor, as ``precision: auto`` does for ours."""
    return measure_bf16_speedup(torch.device("cpu")) >= WORTHWHILE


def adapt(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with bfloat16 where they have it and this processor is faster with it."""
    return {name: value and is_bf16_faster() if name in BF16 else value for name, value in settings.items()}


DIFFUSERS_NETWORKS: dict[str, dict[str, Any]] = {
    "defaults": {"size": 64, "channels": 3, "widths": (128, 128, 256, 256, 512, 512), "attention": 4, "blocks": 2},
    "tuned": {"size": 28, "channels": 1, "widths": (32, 64, 64), "attention": 2, "blocks": 1},
}
DIFFUSERS_TRAINING: dict[str, dict[str, Any]] = {
    "defaults": {"batch_size": 16, "lr": 1e-4, "warm_up": 500, "flip": True, "bf16": False, "steps": 375_000},
    "tuned": {"batch_size": 64, "lr": 1e-3, "warm_up": 100, "flip": False, "bf16": True, "steps": 8_000},
}


class Diffusers:
    """diffusers' example of unconditional generation: its network, loss, optimizer, learning rate and EMA.

    Its images are decoded before the clock starts, which is faster than the example's own reading. The network halves
    images five times, or twice when tuned; its defaults take images of 64x64 and three channels.
    """

    def __init__(self, settings: str, dataset: str) -> None:
        self.shape, self.training = DIFFUSERS_NETWORKS[settings], adapt(DIFFUSERS_TRAINING[settings])
        self.file = f"{dataset}.pt"

    def describe(self) -> dict[str, Any]:
        return {**self.shape, **self.training, "nfe": NFE}

    def prepare(self, images: ImageDataset, prepared: Path) -> None:
        torch.save(images.__getitems__(range(len(images)))[0], prepared / self.file)

    def build(self) -> Any:
        from diffusers import UNet2DModel

        widths, at = self.shape["widths"], self.shape["attention"]
        down = ["AttnDownBlock2D" if level == at else "DownBlock2D" for level in range(len(widths))]
        up = [each.replace("Down", "Up") for each in reversed(down)]
        channels = self.shape["channels"]
        sizes = {"in_channels": channels, "out_channels": channels, "sample_size": self.shape["size"]}
        sizes |= {"block_out_channels": widths, "layers_per_block": self.shape["blocks"]}
        return UNet2DModel(down_block_types=down, up_block_types=up, **sizes)

    def train(self, data: Path, prepared: Path, clock: Clock, seed: int) -> None:
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        torch.manual_seed(seed)
        images, of = torch.load(prepared / self.file, weights_only=True), self.training
        model = self.build().train()
        schedule = DDPMScheduler(num_train_timesteps=1000)
        optimizer = torch.optim.AdamW(model.parameters(), lr=of["lr"], betas=(0.95, 0.999), weight_decay=1e-6)
        rates = get_scheduler("cosine", optimizer, num_warmup_steps=of["warm_up"], num_training_steps=of["steps"])
        average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        seen = 0
        while True:
            for part in torch.randperm(len(images)).split(of["batch_size"]):
                clean = self.read(images[part], of["flip"])
                noise = torch.randn_like(clean)
                t = torch.randint(0, 1000, (len(clean),)).long()
                with torch.autocast("cpu", torch.bfloat16, enabled=of["bf16"]):
                    output = model(schedule.add_noise(clean, noise, t), t).sample
                functional.mse_loss(output.float(), noise).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
                average.step(model.parameters())
                seen += len(clean)

                def save(path: Path) -> None:
                    average.store(model.parameters())
                    average.copy_to(model.parameters())
                    torch.save(model.state_dict(), path)
                    average.restore(model.parameters())

                if clock.step(seen, save):
                    return

    def read(self, pixels: Tensor, flip: bool) -> Tensor:
        """Return uint8 images as the network reads them: resized, flipped, scaled to [-1, 1]."""
        images = to_float(pixels)
        size = self.shape["size"]
        if size != images.shape[-1]:
            images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        if flip:
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        return images.expand(-1, self.shape["channels"], -1, -1)

    @torch.no_grad()
    def sample(self, weights: Path, n: int, seed: int) -> Tensor:
        from diffusers import DDIMPipeline, DDIMScheduler

        model = self.build().eval()
        model.load_state_dict(torch.load(weights, weights_only=True))
        pipeline = DDIMPipeline(model, DDIMScheduler(num_train_timesteps=1000))
        pipeline.set_progress_bar_config(disable=True)
        generator, made = torch.Generator().manual_seed(seed), []
        for part in torch.arange(n).split(BATCH):
            found = pipeline(len(part), generator, num_inference_steps=NFE, output_type="np").images
            made.append(shrink(torch.from_numpy(found).permute(0, 3, 1, 2)))
        return torch.cat(made)


PYTORCH_NETWORKS: dict[str, dict[str, Any]] = {
    "defaults": {"size": 32, "channels": 3, "width": 64, "multipliers": (1, 2, 4, 8), "objective": "pred_v"},
    "tuned": {"size": 28, "channels": 1, "width": 32, "multipliers": (1, 2, 2), "objective": "pred_v"},
}
PYTORCH_TRAINING: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned": {"train_batch_size": 64, "train_lr": 1e-3, "augment_horizontal_flip": False, "amp": True},
}


class DenoisingDiffusionPytorch:
    """denoising-diffusion-pytorch's own Trainer, whose files of images are written before the clock starts.

    Its U-Net halves images three times by default, which takes 32x32, and twice when tuned.
    """

    def __init__(self, settings: str, dataset: str) -> None:
        self.shape, self.training = PYTORCH_NETWORKS[settings], adapt(PYTORCH_TRAINING[settings])
        self.folder = f"{dataset}-png"

    def describe(self) -> dict[str, Any]:
        return {**self.shape, **self.training, "nfe": NFE}

    def prepare(self, images: ImageDataset, prepared: Path) -> None:
        folder = prepared / self.folder
        if folder.is_dir():
            return
        folder.mkdir()
        for index, image in enumerate(images.__getitems__(range(len(images)))[0]):
            save_image(image, folder / f"{index:05d}.png")

    def build(self) -> Any:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        of = self.shape
        model = Unet(dim=of["width"], dim_mults=of["multipliers"], channels=of["channels"])
        return GaussianDiffusion(model, image_size=of["size"], objective=of["objective"], sampling_timesteps=NFE)

    def train(self, data: Path, prepared: Path, clock: Clock, seed: int) -> None:
        from denoising_diffusion_pytorch import Trainer

        torch.manual_seed(seed)
        trainer = Trainer(
            self.build(),
            str(prepared / self.folder),
            train_num_steps=0,
            save_and_sample_every=10**9,
            calculate_fid=False,
            results_folder=str(clock.folder / "results"),
            mixed_precision_type="bf16",
            **self.training,
        )
        images = trainer.batch_size * trainer.gradient_accumulate_every

        def save(path: Path) -> None:
            torch.save(trainer.ema.ema_model.state_dict(), path)

        over = False
        while not over:
            trainer.train_num_steps += 10
            trainer.train()
            over = clock.step(trainer.step * images, save)

    @torch.no_grad()
    def sample(self, weights: Path, n: int, seed: int) -> Tensor:
        model = self.build().eval()
        model.load_state_dict(torch.load(weights, weights_only=True))
        torch.manual_seed(seed)
        made = []
        for part in torch.arange(n).split(BATCH):
            made.append(shrink(model.sample(batch_size=len(part))))
        return torch.cat(made)


def shrink(images: Tensor) -> Tensor:
    """Return images in [0, 1] as (n, 1, 28, 28) uint8."""
    gray = images.mean(1, keepdim=True)
    return to_uint8(functional.interpolate(gray, size=(28, 28), mode="bilinear", antialias=True) * 2 - 1)
