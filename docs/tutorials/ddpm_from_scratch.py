# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DDPM from scratch
#
# This notebook builds a denoising diffusion model (Ho, Jain & Abbeel 2020,
# [arXiv:2006.11239](https://arxiv.org/abs/2006.11239))
# of 8x8 handwritten digits: the forward chain, its kernel, the loss, training and two samplers. It needs torch,
# scikit-learn and
# matplotlib only, all of which Colab has, and takes about a minute on a laptop without a GPU. The last section
# compares every
# formula with the function of `lightning_ddpm` that computes it.

# %%
import importlib.util
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)


def show(images, columns, title=None):
    """Plot images (n, 8, 8) in [-1, 1] as a grid."""
    rows = math.ceil(len(images) / columns)
    _, axes = plt.subplots(rows, columns, figsize=(0.7 * columns, 0.7 * rows + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image, cmap="gray", vmin=-1, vmax=1)
    if title:
        plt.suptitle(title, fontsize=10)
    plt.show()


# %% [markdown]
# ## The data
#
# 1,797 digits with values 0..16, scaled to $[-1, 1]$. An image is a vector $x_0$ of 64 numbers.

# %%
digits = load_digits()
x_data = torch.tensor(digits.images, dtype=torch.float32) / 8 - 1
show(x_data[:20], 10)

# %% [markdown]
# ## The forward chain
#
# Each of $T$ steps shrinks the image a little and adds a little noise:
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\left(x_t;\ \sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t I\right)$$
#
# We take the cosine schedule of Nichol & Dhariwal 2021, which is defined by $\bar\alpha_t = \prod_{i \le t} (1 -
# \beta_i)$. Index 0 is
# the data: $\bar\alpha_0 = 1$.

# %%
T = 1000
time = torch.arange(T + 1, dtype=torch.float64) / T
cosine = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
beta = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)])
alpha_bar = torch.cumprod(1 - beta, 0)

linear = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)
plt.figure(figsize=(5, 2.5))
plt.plot(alpha_bar, label="cosine")
plt.plot(range(1, T + 1), linear, label="linear (Ho et al.)")
plt.xlabel("t")
plt.ylabel(r"$\bar\alpha_t$: share of signal")
plt.legend()
plt.show()

# %% [markdown]
# One image through the chain, step by step:

# %%
x = x_data[0].double()
shown = [x]
for t in range(1, T + 1):
    x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * torch.randn_like(x)
    if t % 100 == 0:
        shown.append(x)
show(shown, 11, "t = 0, 100, ..., 1000")

# %% [markdown]
# ## The kernel
#
# Gaussian steps compose to a Gaussian, so any $x_t$ can be sampled at once:
#
# $$q(x_t \mid x_0) = \mathcal N\!\left(x_t;\ \sqrt{\bar\alpha_t}\, x_0,\ (1 - \bar\alpha_t) I\right), \qquad
# x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon$$


# %%
def q_sample(x_0, t, eps):
    """Return x_t for images (b, 8, 8), timesteps (b,) and noise like the images."""
    signal = alpha_bar[t].sqrt().float()[:, None, None]
    noise = (1 - alpha_bar[t]).sqrt().float()[:, None, None]
    return signal * x_0 + noise * eps


# %% [markdown]
# 2,000 chains from the same image agree with the kernel in mean and standard deviation, for one pixel at every t:

# %%
pixel = x_data[0, 2, 3].double()
chains = pixel.repeat(2000)
mean, std = [pixel], [torch.tensor(0.0, dtype=torch.float64)]
for t in range(1, T + 1):
    chains = (1 - beta[t]).sqrt() * chains + beta[t].sqrt() * torch.randn(2000, dtype=torch.float64)
    mean.append(chains.mean())
    std.append(chains.std())

plt.figure(figsize=(5, 2.5))
plt.plot(mean, label="mean of 2,000 chains")
plt.plot(alpha_bar.sqrt() * pixel, "k--", lw=1, label="kernel")
plt.plot(std, label="their standard deviation")
plt.plot((1 - alpha_bar).sqrt(), "k--", lw=1)
plt.xlabel("t")
plt.legend()
plt.show()
assert (torch.stack(mean) - alpha_bar.sqrt() * pixel).abs().max() < 0.1
assert (torch.stack(std) - (1 - alpha_bar).sqrt()).abs().max() < 0.1

# %% [markdown]
# ## The network
#
# It predicts the noise in $x_t$. For 64 pixels a residual MLP is enough; the timestep enters as sines and cosines.


# %%
class NoisePredictor(nn.Module):
    def __init__(self, width=256, layers=3):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(32) / 32))
        self.encode = nn.Linear(64 + 64, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.decode = nn.Linear(width, 64)

    def forward(self, x_t, t):
        angle = t[:, None] * self.frequencies
        hidden = self.encode(torch.cat([x_t.flatten(1), angle.sin(), angle.cos()], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.decode(hidden).reshape(x_t.shape)


network = NoisePredictor()
print(f"{sum(each.numel() for each in network.parameters()):,} parameters")

# %% [markdown]
# ## The loss
#
# The variational bound has one term a timestep. For a network that predicts the noise, the term at $t$ is a
# weighted squared error,
#
# $$L_{t-1} = \mathbb E\left[\frac{\beta_t^2}{2 \sigma_t^2 (1 - \beta_t)(1 - \bar\alpha_t)}
# \left\| \epsilon - \epsilon_\theta(x_t, t) \right\|^2\right] + C ,$$
#
# and Ho et al. drop the weight. The plot shows what that changes: the ELBO concentrates on the smallest $t$, where
# the noise is
# hardly visible.

# %%
weight = beta[1:] / (2 * (1 - beta[1:]) * (1 - alpha_bar[1:]))  # with sigma^2 = beta
plt.figure(figsize=(5, 2.5))
plt.semilogy(range(1, T + 1), weight, label="weight in the ELBO")
plt.axhline(1, color="k", ls="--", label=r"weight in $L_\mathrm{simple}$")
plt.xlabel("t")
plt.legend()
plt.show()


# %%
def simple_loss(network, x_0):
    """Return L_simple: the mean squared error of the predicted noise at uniform t."""
    t = torch.randint(1, T + 1, (len(x_0),))
    eps = torch.randn_like(x_0)
    return (network(q_sample(x_0, t, eps), t) - eps).square().mean()


# %% [markdown]
# ## Training
#
# Algorithm 1 of the paper: sample images, timesteps and noise, and step the optimizer. An exponential moving
# average of the weights
# is what generates the images afterwards.

# %%
STEPS = 3000
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
losses = []
for _ in range(STEPS):
    batch = x_data[torch.randint(len(x_data), (128,))]
    loss = simple_loss(network, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    average.update_parameters(network)
    losses.append(loss.item())

smooth = torch.tensor(losses).reshape(-1, 50).mean(1)
plt.figure(figsize=(5, 2.5))
plt.plot(range(50, STEPS + 1, 50), smooth)
plt.xlabel("step")
plt.ylabel(r"$L_\mathrm{simple}$")
plt.show()
assert smooth[-1] < 0.5 * smooth[0]

# %% [markdown]
# ## Sampling: DDPM
#
# The noise estimate fixes an image estimate, which we clip to the range of images:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\;\hat\epsilon}{\sqrt{\bar\alpha_t}}$$
#
# A reverse step to any earlier $s < t$ puts it back at the noise level of $s$ (Song, Meng & Ermon 2021, eq. 12):
#
# $$x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\;\hat\epsilon + \sigma z, \qquad z \sim
# \mathcal N(0, I)$$
#
# With $s = t - 1$ and $\sigma^2 = \tilde\beta_t = \beta_t \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}$ this is DDPM.


# %%
def denoise(x_t, t):
    """Return the estimates of image and noise in x_t (b, 8, 8), at the same timestep for all of them."""
    eps = average(x_t, torch.full((len(x_t),), t))
    x_0 = (x_t - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
    x_0 = x_0.clamp(-1, 1)
    return x_0, (x_t - alpha_bar[t].sqrt() * x_0) / (1 - alpha_bar[t]).sqrt()


def reverse_step(x_t, t, s, eta):
    """Return x_s; eta = 1 is DDPM, eta = 0 is DDIM."""
    x_0, eps = denoise(x_t, t)
    variance = (1 - alpha_bar[t] / alpha_bar[s]) * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    sigma = eta * variance.sqrt()
    x_s = alpha_bar[s].sqrt() * x_0 + (1 - alpha_bar[s] - sigma**2).clamp(min=0).sqrt() * eps
    return (x_s + sigma * torch.randn_like(x_t)).float()


@torch.no_grad()
def sample(n, steps, eta):
    """Return n images, and the chain that led to the first one."""
    times = torch.linspace(0, T, steps + 1).round().long().tolist()[::-1]
    x = torch.randn(n, 8, 8)
    chain = [x[0]]
    for t, s in pairwise(times):
        x = reverse_step(x, t, s, eta)
        chain.append(x[0])
    return x, chain


images_ddpm, chain = sample(200, steps=T, eta=1)
show(chain[::100], 11, "one sample, from t = 1000 to 0")
show(images_ddpm[:40], 10, "DDPM, 1000 network evaluations")

# %% [markdown]
# ## Sampling: DDIM
#
# The same network, the same formula with $\sigma = 0$: deterministic given $x_T$, so steps can be long. Twenty of
# them do.

# %%
images_ddim, _ = sample(500, steps=20, eta=0)
show(images_ddim[:40], 10, "DDIM, 20 network evaluations")


# %% [markdown]
# ## How good are they?
#
# The Fréchet distance between two sets of images, each replaced by a Gaussian with its mean and covariance; here in
# raw pixels,
# while the FID takes the features of a network. Two halves of the real digits are the best that can be expected,
# noise is the
# worst.


# %%
def frechet_distance(first, second):
    mean_1, mean_2 = first.flatten(1).double().mean(0), second.flatten(1).double().mean(0)
    cov_1, cov_2 = torch.cov(first.flatten(1).double().T), torch.cov(second.flatten(1).double().T)
    root = torch.linalg.eigvals(cov_1 @ cov_2).real.clamp(min=0).sqrt().sum()
    return ((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root).item()


halves = x_data[torch.randperm(len(x_data))]
distances = {
    "real digits, two halves": frechet_distance(halves[:898], halves[898:]),
    "DDPM, 1000 NFE": frechet_distance(images_ddpm, x_data),
    "DDIM, 20 NFE": frechet_distance(images_ddim, x_data),
    "noise": frechet_distance(torch.randn(500, 8, 8), x_data),
}
for name, distance in distances.items():
    print(f"{name:25} {distance:6.2f}")
assert distances["DDPM, 1000 NFE"] < 0.2 * distances["noise"]
assert distances["DDIM, 20 NFE"] < 0.2 * distances["noise"]

# %% [markdown]
# ## The same in the package
#
# `lightning_ddpm` has each of these formulas as a function, for any schedule and any prediction of the network.
# Where it is
# installed, this cell checks that they agree.

# %%
if importlib.util.find_spec("lightning_ddpm") is None:
    print("lightning_ddpm is not installed here")
else:
    from lightning_ddpm import diffusion

    schedule = diffusion.Cosine(T)
    torch.testing.assert_close(schedule.alpha_bar, alpha_bar)

    x_0, t, eps = x_data[:4, None], torch.tensor([1, 10, 500, 999]), torch.randn(4, 1, 8, 8)
    x_t = diffusion.q_sample(schedule, x_0, t, eps)
    torch.testing.assert_close(x_t[:, 0], q_sample(x_0[:, 0], t, eps[:, 0]))

    denoiser = diffusion.Denoiser(average, schedule)
    ddim = diffusion.DDIM(steps=20)
    with torch.no_grad():
        x_s = ddim.step(denoiser, x_t, 500, 450, torch.randn_like)
        torch.testing.assert_close(x_s[:, 0], reverse_step(x_t[:, 0], 500, 450, eta=0), rtol=1e-4, atol=1e-4)
    print("schedule, kernel and DDIM step agree with lightning_ddpm")

# %% [markdown]
# Where to go from here: [the concepts](../concepts/index.md) derive these formulas and name their functions;
# [your own network](network.md) trains this MLP with the package, which adds evaluation, checkpoints, other
# samplers, guidance and
# several GPUs.
