"""Where x begins: what each guess promises."""

from __future__ import annotations

import numpy as np
import pytest

from runner import guesses
from runner.errors import UserError
from runner.losses import Loss


def loss(dimension: int = 3, **known) -> Loss:
    return Loss(lambda x: x, (dimension,) if dimension else (), **known)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dimension", [0, 1, 5])
def test_every_guess_has_the_loss_shape_and_the_dtype(dtype, dimension):
    shape = (dimension,) if dimension else ()
    known = loss(dimension, start=np.full(shape, 2.0), domain=np.stack([np.full(shape, -1.0), np.full(shape, 3.0)]))
    given = {
        guesses.standard: {},
        guesses.point: {"x": [1.0] * dimension if dimension else 1.0},
        guesses.uniform: {"low": None, "high": None},
        guesses.normal: {"mean": None, "standard_deviation": 1.0},
    }
    for guess, arguments in given.items():
        x0 = guess(known, dtype, 0, **arguments)
        assert isinstance(x0, np.ndarray) and x0.shape == shape and x0.dtype == dtype


def test_a_uniform_guess_fills_its_box():
    draws = [guesses.uniform(loss(2), "float64", seed, low=[-1, 5], high=[1, 6]) for seed in range(400)]
    low, high, mean = np.min(draws, 0), np.max(draws, 0), np.mean(draws, 0)
    assert (low >= [-1, 5]).all() and (high < [1, 6]).all()
    # The mean of n draws from an interval of width w deviates by w / sqrt(12 n): 0.029 and 0.014; five of them.
    np.testing.assert_allclose(mean, [0, 5.5], atol=0.15)
    np.testing.assert_allclose(high - low, [2, 1], rtol=0.05)


def test_a_normal_guess_has_its_mean_and_deviation():
    draws = [guesses.normal(loss(2), "float64", seed, mean=[1, 2], standard_deviation=[0.5, 0]) for seed in range(400)]
    # Standard errors: 0.5 / sqrt(400) of the mean, 0.5 / sqrt(800) of the deviation; five of them.
    np.testing.assert_allclose(np.mean(draws, 0), [1, 2], atol=0.125)
    np.testing.assert_allclose(np.std(draws, 0), [0.5, 0], atol=0.09)


def test_a_seed_of_0_is_a_seed():
    first, again, other = (guesses.uniform(loss(), "float64", seed, low=0, high=1) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("guess", [guesses.uniform, guesses.normal])
def test_a_loss_without_a_shape_asks_for_its_dimension(guess):
    arguments = {"low": 0, "high": 1} if guess is guesses.uniform else {"mean": 0, "standard_deviation": 1}
    with pytest.raises(UserError, match=r"loss\.dimension"):
        guess(Loss(lambda x: x, None), "float32", 0, **arguments)


@pytest.mark.parametrize("x", [[], [[1, 2], [3, 4]], [1, [2]], "here", [float("nan"), 0, 0], float("inf"), [1, 2], 1.0])
def test_a_point_that_does_not_fit_is_refused(x):
    with pytest.raises(UserError, match=r"guess\.x must be"):
        guesses.point(loss(3), "float32", 0, x=x)


def test_a_point_gives_a_loss_without_a_shape_its_shape():
    assert guesses.point(Loss(lambda x: x, None), "float32", 0, x=[1, 2]).shape == (2,)
