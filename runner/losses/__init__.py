"""The losses that conf/loss offers, and the functions that declare a loss."""

from runner.losses.base import Known, Loss, intermediate, intermediates, known, term, terms
from runner.losses.convex import booth, ellipsoid, matyas, powell_singular, quadratic, sphere, zakharov
from runner.losses.factorization import matrix_factorization
from runner.losses.linear import (
    lasso_smooth,
    linear_regression,
    logistic_regression,
    poisson_regression,
    ridge,
    softmax_regression,
    svm_squared_hinge,
)
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
from runner.losses.networks import keras_model, mlp
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
    "keras_model",
    "known",
    "lasso_smooth",
    "levy",
    "linear_regression",
    "logistic_regression",
    "matrix_factorization",
    "matyas",
    "mlp",
    "poisson_regression",
    "powell_singular",
    "quadratic",
    "rastrigin",
    "ridge",
    "rosenbrock",
    "six_hump_camel",
    "softmax_regression",
    "sphere",
    "styblinski_tang",
    "svm_squared_hinge",
    "term",
    "terms",
    "three_hump_camel",
    "wood",
    "zakharov",
]
