"""Samplers, one algorithm per file; all names are imported from ``lightning_ddpm.diffusion``.

- ``base``: what every sampler is, and how to write one.
- ``ancestral``: DDPM's ancestral sampling; 1 NFE per step, stochastic.
- ``ddim``: DDIM, its inversion and interpolation; 1 NFE per step, first order.
- ``dpm_solver``: DPM-Solver++(2M), ODE and SDE; 1 NFE per step, second order.
- ``heun``: Heun's method on the probability-flow ODE; 2 NFE per step, second order.
- ``edm``: EDM's Heun on a grid of noise levels, with churn; 2 NFE per step, second order.
- ``mean_flow``: steps of a model of the mean velocity, which one step already samples; 1 NFE per step.
- ``ode``: adaptive Dormand-Prince solver of the probability-flow ODE, and its likelihood; NFE set by the tolerance.
- ``sde``: Euler-Maruyama on the reverse SDE, and Langevin corrections of any sampler's steps.
- ``repaint``, ``ddrm``, ``sdedit``: inpainting, linear inverse problems, variations of an image.
- ``spacing``: which of the T timesteps a sampler with fewer steps visits.
"""
