"""Layers of students in NumPy: LSTM and convolution, made of matrices and norms that compute as the file says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
Product = Callable[..., np.ndarray]  # (x (T, n_in), bias (n_out,) in place of its own) -> (T, n_out)


class LSTM:
    """x = norm(x + [h forward ; h backward]), u = D / 2 units a direction; see model/recurrent.py.

    matrix makes the gates of both directions, (T, 8u); ahead and back multiply h_{t-1}.
    """

    def __init__(self, matrix: Product, ahead: Product, back: Product, norm: Function):
        self.input, self.ahead, self.back, self.norm = matrix, ahead, back, norm

    def __call__(self, x: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        """(T, D) -> (T, D)."""
        ahead, back = np.split(self.input(x), 2, axis=1)  # (T, 4u) each
        y = [_direction(ahead, self.ahead), _direction(back[::-1], self.back)[::-1]]
        return self.norm(x + np.concatenate(y, axis=1))


def _direction(gates: np.ndarray, recurrent: Product) -> np.ndarray:
    """gates (T, 4u) in reading order -> h (T, u)."""
    u = gates.shape[1] // 4
    h, c = np.zeros((2, u), gates.dtype)
    found = []
    for row in gates:
        z = recurrent(h[None], row)[0]
        i, f, g, o = np.split(z, 4)
        # An infinite z would give a finite answer: 0 * infinity is NaN, which is refused.
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g) + 0 * (i + f + g + o)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.stack(found)


class Convolution:
    """x_t = norm(x_t + f(W [x_{t-r} ; ... ; x_{t+r}] + b)), zeros beyond the ends; see model/convolution.py."""

    def __init__(self, matrix: Function, activation: Function, width: int, norm: Function):
        self.matrix, self.activation, self.width, self.norm = matrix, activation, width, norm

    def __call__(self, x: np.ndarray, buckets: np.ndarray | None) -> np.ndarray:
        """(T, D) -> (T, D)."""
        padded = np.pad(x, ((self.width // 2,) * 2, (0, 0)))
        neighbours = np.concatenate([padded[k : k + len(x)] for k in range(self.width)], axis=1)  # (T, width D)
        return self.norm(x + self.activation(self.matrix(neighbours)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) is infinite below -88 in float32: 0
        return 1 / (1 + np.exp(-x))
