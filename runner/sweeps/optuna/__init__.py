"""Sweeps whose values Optuna samples."""
