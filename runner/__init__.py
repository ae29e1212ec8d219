"""A configuration-driven experiment runner for TensorFlow optimizers: it records every step of a run."""

__version__ = "0.1.0"
