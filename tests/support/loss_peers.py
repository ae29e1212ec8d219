"""The losses in other libraries, by name: what their values and gradients are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import argmin_testfunctions_py as argmin
import cma
import numdifftools
import numpy as np
from landscapes import single_objective as landscapes
from optimagic.benchmarking import more_wild
from scipy import optimize


@dataclass(frozen=True)
class Peer:
    """The same loss in another library, for one point; without a gradient of its own, its values are differentiated."""

    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], Any] | None = None

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Return its gradient."""
        return np.asarray(self.gradient(x) if self.gradient else numdifftools.Gradient(self.value)(x)).reshape(x.shape)


def of_argmin(name: str) -> Peer:
    """Return a function of argmin-testfunctions-py with the gradient that was derived by hand there."""
    value, gradient = getattr(argmin, name), getattr(argmin, f"{name}_derivative")
    return Peer(lambda x: value(x.tolist()), lambda x: gradient(x.tolist()))


def levy_of_argmin() -> Peer:
    """Return argmin's function, whose sum lacks i = 1 of the literature's (VLSE): the first coordinate twice brings it back."""
    doubled = of_argmin("levy")

    def gradient(x: np.ndarray) -> np.ndarray:
        first, *rest = doubled.gradient(np.array([x[0], *x]))
        return np.array([first + rest[0], *rest[1:]])

    return Peer(lambda x: doubled.value(np.array([x[0], *x])), gradient)


def of_optimagic(name: str) -> Peer:
    """Return the sum of the squared residuals of a function of optimagic's, which follows Moré, Garbow and Hillstrom."""
    residuals = getattr(more_wild, name)
    return Peer(lambda x: float(np.square(residuals(x)).sum()))


parabola = np.polynomial.Polynomial.fromroots([4.0, 4.0])
PEERS = {
    "ackley": of_argmin("ackley"),
    "beale": of_argmin("beale"),
    "booth": of_argmin("booth"),
    # cma's begins at x₁ = -5 and its minimum is 0.
    "branin": Peer(lambda x: cma.ff.branin(x - [5.0, 0.0]) + 0.39788735772973816),
    "dixon_price": Peer(cma.ff.dixonprice),
    "ellipsoid": Peer(lambda x: cma.ff.elli(x, cond=100.0)),
    "goldstein_price": of_argmin("goldsteinprice"),
    # cma's is scaled to the domain [-5, 5].
    "griewank": Peer(lambda x: cma.ff.griewank(x / 120)),
    "helical_valley": of_optimagic("helical_valley"),
    "himmelblau": of_argmin("himmelblau"),
    "levy": levy_of_argmin(),
    "matyas": of_argmin("matyas"),
    "powell_singular": of_optimagic("powell_singular"),
    "quadratic": Peer(parabola, parabola.deriv()),
    "rastrigin": of_argmin("rastrigin"),
    "rosenbrock": Peer(optimize.rosen, optimize.rosen_der),
    "six_hump_camel": Peer(landscapes.camel_hump_6),
    "sphere": of_argmin("sphere"),
    "styblinski_tang": of_argmin("styblinski_tang"),
    "three_hump_camel": of_argmin("threehumpcamel"),
    "wood": Peer(landscapes.colville),
    # landscapes' i counts from 0, the literature's from 1: a leading 0 shifts it and adds nothing.
    "zakharov": Peer(lambda x: landscapes.zakharov([0.0, *x])),
}
