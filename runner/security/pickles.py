"""The only pickle that is read: the state of CMA-ES, which Optuna saves in a study's storage, where others can write too."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

from runner.errors import UserError

# The classes and the arrays of numbers in the states of cmaes 0.13.
STATES = {("cmaes._cma", "CMA"), ("cmaes._cmawm", "CMAwM"), ("cmaes._sepcma", "SepCMA")}
ARRAYS = {("numpy", "dtype"), ("numpy", "ndarray"), ("numpy._core.multiarray", "_reconstruct")}
ARRAYS |= {("numpy._core.multiarray", "scalar")}


class States(pickle.Unpickler):
    """An unpickler of CMA-ES states; raises UserError for any other class or function that a pickle would import."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of a CMA-ES state; raises UserError for any other name."""
        if (module, name) not in STATES | ARRAYS:
            raise UserError(f"hydra.sweeper.storage holds a pickle of {module}.{name}, which is not read; use another storage")
        return super().find_class(module, name)


def guard() -> None:
    """Patch Optuna so that it reads no other pickle."""
    from optuna.samplers import _cmaes

    setattr(_cmaes, "pickle", SimpleNamespace(dumps=pickle.dumps, loads=lambda data: States(io.BytesIO(data)).load()))
