"""A diffusion model of our own on lightning_ddpm: its network, its loss and its data."""
