"""The one pickle that is read: how far CMA-ES has come, which Optuna keeps in a study's storage, where others can write too."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

from runner.errors import UserError

# What the states of cmaes 0.13 are made of: their classes, and arrays of numbers.
STATES = {("cmaes._cma", "CMA"), ("cmaes._cmawm", "CMAwM"), ("cmaes._sepcma", "SepCMA")}
ARRAYS = {("numpy", "dtype"), ("numpy", "ndarray"), ("numpy._core.multiarray", "_reconstruct")}
ARRAYS |= {("numpy._core.multiarray", "scalar")}


class States(pickle.Unpickler):
    """Reads states of CMA-ES, and raises UserError for whatever else a pickle would import."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of a state's."""
        if (module, name) not in STATES | ARRAYS:
            raise UserError(f"hydra.sweeper.storage holds a pickle of {module}.{name}, which is not read; use another storage")
        return super().find_class(module, name)


def guard() -> None:
    """Have Optuna read no other pickle."""
    from optuna.samplers import _cmaes

    setattr(_cmaes, "pickle", SimpleNamespace(dumps=pickle.dumps, loads=lambda data: States(io.BytesIO(data)).load()))
