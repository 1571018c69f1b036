"""Conversion to and from Hugging Face's diffusers: the JSON files of a UNet2DModel and its scheduler, and weights.

The functions do not need diffusers itself. Its models/unets/unet_2d.py and files such as schedulers/scheduling_ddpm.py
(github.com/huggingface/diffusers, 0.32 and newer) define what the settings mean.
"""
