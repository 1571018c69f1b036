"""LightningModules, and the functions that load and run them."""
