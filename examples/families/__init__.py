"""A VAE, a GAN and a normalizing flow, trained and evaluated as DDPM is: docs/results/families.md compares them."""
