"""The VAE, the GAN and the flow of examples/families: their mathematics, and a run of each by the command line."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY, callback, read_yaml, write_yaml
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from examples.families.flow import Flow, FlowStep
from examples.families.gan import GAN
from examples.families.vae import VAE
from lightning_ddpm import generate
from lightning_ddpm.diffusion.elbo import decoder_log_likelihood
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.utils.errors import UserError

FAMILIES = {"vae": VAE, "gan": GAN, "flow": Flow}


class LinearVAE(VAE):
    """A VAE whose decoder is z -> W z with variance sigma^2, of which posterior and evidence are known."""

    def __init__(self, weight: Tensor, sigma: float) -> None:
        super().__init__(1, 4, 4, weight.shape[1])
        self.double()
        self.weight, self.sigma = weight, sigma
        precision = torch.eye(weight.shape[1]).double() + weight.T @ weight / sigma**2
        self.covariance = precision.inverse()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.flatten(1) @ self.weight @ self.covariance / self.sigma**2
        return mean, self.covariance.diagonal().log().expand_as(mean)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = (z @ self.weight.T).unflatten(1, (1, 4, 4))
        return mean, torch.full_like(mean, 2 * math.log(self.sigma))


def test_the_elbo_of_the_exact_posterior_is_the_evidence() -> None:
    """With orthogonal columns of W the posterior is diagonal, and every z gives log p(x)."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(16, 3).double())[0] * torch.tensor([0.3, 0.2, 0.1]).double()
    model, sigma = LinearVAE(weight, 0.3), 0.3
    x = torch.randint(40, 216, (5, 16)).double() / 127.5 - 1
    covariance = weight @ weight.T + sigma**2 * torch.eye(16).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(16).double(), covariance).log_prob(x)
    for seed in range(3):
        eps = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double()
        kl, reconstruction = model.negative_elbo(x.unflatten(1, (1, 4, 4)), eps)
        mean, log_variance = model.encode(x.unflatten(1, (1, 4, 4)))
        z = mean + (log_variance / 2).exp() * eps
        # one sample of log q(z | x) - log p(z) in place of its mean, the KL divergence
        sampled = (-(eps.square() + log_variance) / 2 + z.square() / 2).sum(1) / (16 * math.log(2))
        bits = sampled + reconstruction
        assert torch.allclose(bits, -evidence / (16 * math.log(2)) - math.log2(2 / 255), atol=2e-4)
        q, p = torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
        assert torch.allclose(kl * 16 * math.log(2), torch.distributions.kl_divergence(q, p).sum(1))


def test_reconstruction_is_the_discretised_likelihood_of_ddpm() -> None:
    torch.manual_seed(0)
    model, x, eps = VAE(1, 8, 4, 2), torch.randint(256, (3, 1, 8, 8)) / 127.5 - 1, torch.randn(3, 2)
    mean, log_variance = model.encode(x)
    expected = decoder_log_likelihood(x, *model.decode(mean + (log_variance / 2).exp() * eps)).flatten(1).mean(1)
    assert torch.allclose(model.negative_elbo(x, eps)[1], -expected / math.log(2))


def test_r1_and_its_gradient_are_those_of_a_quadratic_discriminator() -> None:
    """D(x) = a |x|^2 / 2 + b x: grad_x D = a x + b, R1 = |a x + b|^2 and dR1/da = 2 x (a x + b)."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.a * x.square().sum(1) / 2 + x @ self.b

    torch.manual_seed(0)
    model, x = GAN(1, 4, 4, 2), torch.randn(5, 1, 4, 4)
    model.discriminator = nn.Sequential(inner := Quadratic())
    logit, penalty = model.r1(x)
    field = inner.a * x.flatten(1) + inner.b
    assert torch.allclose(logit, inner(x))
    assert torch.allclose(penalty, field.square().sum(1), rtol=1e-5)
    penalty.sum().backward()
    assert inner.a.grad is not None
    assert inner.b.grad is not None
    assert torch.allclose(inner.a.grad, (2 * x.flatten(1) * field).sum(), rtol=1e-5)
    assert torch.allclose(inner.b.grad, 2 * field.sum(0), rtol=1e-5)


def test_each_network_gets_the_gradient_of_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    model, x, z = GAN(1, 8, 4, 2), torch.rand(4, 1, 8, 8), torch.randn(4, 2)
    generator, discriminator = [*model.generator.parameters()], [*model.discriminator.parameters()]
    losses = model.losses(x, z)
    torch.stack([*losses.values()]).sum().backward()
    logits = model.discriminator(model.generator(z))
    own = torch.autograd.grad(-logits.sigmoid().log().mean(), generator)
    assert all(torch.allclose(each.grad, mine, atol=1e-6) for each, mine in zip(generator, own, strict=True))
    generated, (real, r1) = model.generator(z).detach(), model.r1(x)
    theirs = -real.sigmoid().log().mean() - (1 - model.discriminator(generated).sigmoid()).log().mean() + r1.mean()
    own = torch.autograd.grad(theirs, discriminator)
    assert all(torch.allclose(each.grad, mine, atol=1e-6) for each, mine in zip(discriminator, own, strict=True))


def trained_flow() -> Flow:
    """Return a flow in float64 none of whose couplings is the identity."""
    torch.manual_seed(0)
    model = Flow(1, 8, 8, 2).double()
    for each in model.parameters():
        each.data += 0.1 * torch.randn_like(each)
    return model


def test_the_flow_is_invertible_and_its_log_determinant_is_that_of_the_jacobian() -> None:
    model, u = trained_flow(), torch.rand(2, 1, 8, 8, dtype=torch.double)
    z, log_det = model.encode(u)
    assert torch.allclose(model.decode(z), u, atol=1e-9)
    for image, expected in zip(u, log_det, strict=True):
        matrix = jacobian(lambda x: model.encode(x[None])[0].flatten(), image).reshape(64, 64)
        assert torch.linalg.slogdet(matrix).logabsdet.item() == pytest.approx(expected.item(), abs=1e-8)


def test_a_flow_of_one_step_has_the_density_of_a_gaussian() -> None:
    """With W and b alone, y = W x + b is linear: x ~ N(-W^-1 b, (W^T W)^-1) at each pixel."""
    torch.manual_seed(0)
    step, x = FlowStep(4, 8).double(), torch.randn(6, 4, 1, 1).double()
    step.weight.data += 0.3 * torch.randn(4, 4)
    step.bias.data += torch.randn(4, 1, 1)
    y, log_det = step(x)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(y).flatten(1).sum(1) + log_det
    inverse = step.weight.inverse()
    gaussian = torch.distributions.MultivariateNormal(-inverse @ step.bias.flatten(), inverse @ inverse.T)
    assert torch.allclose(log_density, gaussian.log_prob(x.flatten(1)))


def test_bits_per_dim_of_an_untrained_flow_count_levels() -> None:
    """Eight bits of the uniform distribution less log2 of the density of u, by torch.distributions."""
    model, x, noise = trained_flow(), torch.randint(256, (3, 1, 8, 8)).double(), torch.rand(3, 1, 8, 8).double()
    z, log_det = model.encode((x + noise) / 256)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1) + log_det
    expected = 8 - log_density / (64 * math.log(2))
    assert torch.allclose(model.bits_per_dim(x / 127.5 - 1, noise), expected)


def shrink(name: str, folder: Path, steps: int) -> Any:
    """Return a family's config for a run of a few steps of a small model."""
    config = read_yaml(REPOSITORY / "examples" / "families" / f"{name}.yaml")
    config["trainer"].update(default_root_dir=str(folder), accelerator="cpu", max_steps=steps, val_check_interval=10)
    callback(config, "Evaluation").update(n=70, every_n_steps=10)
    callback(config, "Memorisation").update(n=20)
    callback(config, "SampleGrid").update(n=4, every_n_steps=10)
    callback(config, "Checkpoints").update(every_n_steps=10)
    config["model"]["init_args"].update({"width": 8} | ({"steps": 2} if name == "flow" else {"latent": 4}))
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_samples_and_is_evaluated_by_the_command_line(
    name: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, steps, more in ((whole, 20, []), (parts, 10, []), (parts, 20, ["--ckpt_path", "last"])):
        content = shrink(name, folder, steps)
        if folder == parts:
            kept = [each for each in content["trainer"]["callbacks"] if "metrics" not in str(each)]
            content["trainer"]["callbacks"] = kept
            callback(content, "Checkpoints").pop("monitor")
        config = write_yaml(tmp_path / f"{folder.name}-{steps}.yaml", content)
        status, _, err = command("fit", "--config", config, *more)
        assert status == 0, err
    first, second = (torch.load(each / "last.ckpt", weights_only=True) for each in (whole, parts))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(each, second[key][at]) for at, each in first[key].items())
    assert (whole / "samples" / "step-0000020.png").read_bytes() == (
        parts / "samples" / "step-0000020.png"
    ).read_bytes()

    ckpt, out = whole / "last.ckpt", tmp_path / "images"
    status, _, err = command("sample", "--ckpt", ckpt, "--n", 4, "--out", out)
    assert status == 2
    assert "set LIGHTNING_DDPM_TRUST=examples" in err
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "examples")
    assert command("sample", "--ckpt", ckpt, "--n", 4, "--out", out)[0] == 0
    assert len([*out.glob("00000?.png")]) == 4
    status, _, err = command("sample", "--ckpt", ckpt, "--n", 4, "--out", out, "--steps", 5)
    assert status == 2
    assert f"--steps needs a DDPM, and {FAMILIES[name].__name__} generates its images without it" in err
    evaluate = "evaluate", "--ckpt", ckpt, "--n", 70, "--extractor", "DigitsFeatures", "--metrics", "fid", "pr"
    status, found, err = command(*evaluate)
    assert status == 0
    assert "fd_digits" in found + err
    assert "recall_digits" in found + err
    status, _, err = command(*evaluate, "bpd")
    assert status == 2
    assert f"bpd is the variational bound of a DDPM, and {ckpt} holds {FAMILIES[name].__name__}" in err
    restore = "restore", "--task", "inpaint", "--box", 0, 0, 4, 4, "--images", out, "--out", tmp_path / "restored"
    status, _, err = command(*restore, "--ckpt", ckpt)
    assert status == 2
    assert f"restore needs a DDPM, and {ckpt} holds {FAMILIES[name].__name__}" in err

    model = load(ckpt, FAMILIES[name])
    images = generate(model, 20, batch_size=20)
    assert (images.float() - generate(model, 20, batch_size=7).float()).abs().max() <= 1
    with pytest.raises(UserError, match="cannot be built as"):
        load(ckpt)
