"""The losses that conf/loss picks from, by family, and the way to declare one's own."""

from runner.losses.base import Known, Loss, intermediate, intermediates, known, term, terms
from runner.losses.convex import booth, ellipsoid, matyas, powell_singular, quadratic, sphere, zakharov
from runner.losses.multimodal import (
    ackley,
    branin,
    goldstein_price,
    griewank,
    himmelblau,
    levy,
    rastrigin,
    six_hump_camel,
    styblinski_tang,
    three_hump_camel,
)
from runner.losses.valleys import beale, dixon_price, helical_valley, rosenbrock, wood

__all__ = [
    "Known",
    "Loss",
    "ackley",
    "beale",
    "booth",
    "branin",
    "dixon_price",
    "ellipsoid",
    "goldstein_price",
    "griewank",
    "helical_valley",
    "himmelblau",
    "intermediate",
    "intermediates",
    "known",
    "levy",
    "matyas",
    "powell_singular",
    "quadratic",
    "rastrigin",
    "rosenbrock",
    "six_hump_camel",
    "sphere",
    "styblinski_tang",
    "term",
    "terms",
    "three_hump_camel",
    "wood",
    "zakharov",
]
