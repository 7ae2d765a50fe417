"""Algorithm 1 of i-SpaSP (arXiv 2112.04905) again, in NumPy and float64: example after
example, with explicit loops, and every gradient written out. Nothing of ispasp_jax is
used, so that the two can be compared.
"""

from typing import NamedTuple, Protocol

import numpy as np

#: Below this relative gap at a cut, float32 may decide otherwise than float64.
MARGIN = 1e-5


class Consumer(Protocol):
    """A consumer of one example, and the transpose of its Jacobian there."""

    def forward(self, h): ...

    def pullback(self, h, v): ...


class Dense:
    """u = W1 h, for h of shape (d,) and W1 of shape (d_out, d)."""

    def __init__(self, W1):
        self.W1 = np.asarray(W1, np.float64)

    def forward(self, h):
        return self.W1 @ h

    def pullback(self, h, v):
        return self.W1.T @ v


class Tanh(Dense):
    """u = tanh(W1 h + b): not affine."""

    def __init__(self, W1, b):
        super().__init__(W1)
        self.b = np.asarray(b, np.float64)

    def forward(self, h):
        return np.tanh(self.W1 @ h + self.b)

    def pullback(self, h, v):
        return self.W1.T @ ((1 - self.forward(h) ** 2) * v)


class Relu(Tanh):
    """u = max(W1 h + b, 0): not affine."""

    def forward(self, h):
        return np.maximum(self.W1 @ h + self.b, 0)

    def pullback(self, h, v):
        return self.W1.T @ ((self.W1 @ h + self.b > 0) * v)


class Convolution:
    """A 3x3 correlation padded by one pixel, then scale and shift of each channel.

    h has shape (height, width, d), the kernel (3, 3, d, d_out).
    """

    def __init__(self, kernel, scale, shift, stride):
        self.kernel, self.scale, self.shift = (
            np.asarray(a, np.float64) for a in (kernel, scale, shift)
        )
        self.stride = stride

    def taps(self, shape):
        """Output position, input position and tap of every product."""
        height, width = shape[:2]
        for top, y in enumerate(range(0, height, self.stride)):
            for left, x in enumerate(range(0, width, self.stride)):
                for i in range(3):
                    for j in range(3):
                        row, column = y + i - 1, x + j - 1
                        if 0 <= row < height and 0 <= column < width:
                            yield (top, left), (row, column), (i, j)

    def forward(self, h):
        sides = [-(-side // self.stride) for side in h.shape[:2]]
        out = np.zeros((*sides, self.kernel.shape[-1]))
        for to, at, tap in self.taps(h.shape):
            out[to] += h[at] @ self.kernel[tap]
        return out * self.scale + self.shift

    def pullback(self, h, v):
        back = np.zeros_like(h)
        for to, at, tap in self.taps(h.shape):
            back[at] += self.kernel[tap] @ (v[to] * self.scale)
        return back


class Answer(NamedTuple):
    """What Algorithm 1 gives.

    Attributes:
      support: the channels kept, as a mask.
      supports: the same after each iteration.
      half_squares: ½‖V‖² after each iteration.
      importances: μ(Y) of each iteration.
      margin: the smallest gap, relative to the largest score, at any cut.
    """

    support: np.ndarray
    supports: list[np.ndarray]
    half_squares: list[float]
    importances: list[np.ndarray]
    margin: float


def mu(examples):
    """The sum over examples and positions, one number a channel."""
    total = np.zeros(examples[0].shape[-1])
    for example in examples:
        total += example.reshape(-1, example.shape[-1]).sum(0)
    return total


def top(scores, members, r):
    """The r largest scores among the members, and the gap to the next, relative."""
    ranked = sorted(members, key=lambda c: (-scores[c], c))
    if r >= len(ranked):
        return set(ranked), np.inf
    gap = scores[ranked[r - 1]] - scores[ranked[r]]
    return set(ranked[:r]), gap / max(np.abs(scores).max(), 1e-300)


def algorithm_1(H, consumer, s, T=20) -> Answer:
    """Algorithm 1 on the examples H; the first residual is U - W(0)."""
    H = [np.asarray(h, np.float64) for h in H]
    d = H[0].shape[-1]

    def kept(S):
        mask = np.isin(np.arange(d), list(S))
        return [consumer.forward(h * mask) for h in H]

    U = [consumer.forward(h) for h in H]
    S: set[int] = set()
    margin = np.inf
    supports, half_squares, importances = [], [], []
    V = [u - w for u, w in zip(U, kept(S), strict=True)]
    for _ in range(T):
        Y = [consumer.pullback(h, v) for h, v in zip(H, V, strict=True)]
        omega, gap_proxy = top(mu(Y), range(d), 2 * s)
        S, gap_threshold = top(mu(H), omega | S, s)
        V = [u - w for u, w in zip(U, kept(S), strict=True)]
        margin = min(margin, gap_proxy, gap_threshold)
        importances.append(mu(Y))
        supports.append(np.isin(np.arange(d), list(S)))
        half_squares.append(0.5 * sum((v**2).sum() for v in V))
    return Answer(supports[-1], supports, half_squares, importances, margin)
