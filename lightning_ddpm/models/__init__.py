"""LightningModules, and what loads and runs them."""
