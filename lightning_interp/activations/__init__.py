"""Selecting layers, capturing their activations, pooling them, and running a model unnoticed."""

from lightning_interp.activations.capture import capture as capture
