"""Denoising Diffusion Probabilistic Models on PyTorch Lightning: exact mathematics, figures that can be trusted."""

__version__ = "0.1.0"
