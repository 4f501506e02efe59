"""What others publish for the same task, as plainly as their papers write it: formulas alone, no one's code.

Each takes a weight W (m, d) and statistics of its inputs and outputs, and gives another of a rank, or orders nodes.
Notation: A = E[x x'] of the inputs, not centred, as these papers have it; G = E[g g'] of the gradients by the outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def cut(matrix: Matrix, rank: int) -> Matrix:
    """Eckart-Young: the nearest matrix of a rank."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def damped(moments: Matrix, damping: float) -> Matrix:
    """Add a share of the mean diagonal: statistics of few samples are singular."""
    return moments + damping * moments.trace() / len(moments) * np.eye(len(moments))


def svd_llm(weight: Matrix, inputs: Matrix, rank: int, damping: float = 1e-6) -> Matrix:
    """SVD-LLM (Wang et al. 2024, section 3.1): whiten by the Cholesky factor A = S S', cut W S, and undo it."""
    s = np.linalg.cholesky(damped(inputs, damping))
    return np.linalg.solve(s.T, cut(weight @ s, rank).T).T


def asvd(weight: Matrix, mean_of_absolute: Vector, rank: int, alpha: float = 0.5) -> Matrix:
    """ASVD (Yuan et al. 2023, section 3.2): scale each input by (mean |x_j|)^alpha before the cut."""
    scale = np.maximum(mean_of_absolute, 1e-12) ** alpha
    return cut(weight * scale, rank) / scale


def fwsvd(weight: Matrix, fisher: Matrix, rank: int) -> Matrix:
    """FWSVD (Hsu et al. 2022, Eq. 5-7): weigh each row by the root of its Fisher information, summed over the row."""
    scale = np.sqrt(np.maximum(fisher.sum(axis=1), 1e-24))[:, None]
    return cut(scale * weight, rank) / scale


def kfac_svd(weight: Matrix, inputs: Matrix, gradients: Matrix, rank: int, damping: float = 1e-3) -> Matrix:
    """Minimise tr(G (W - C) A (W - C)'), with the Kronecker factors of the Fisher information: A = S S', G = T T'."""
    s, t = np.linalg.cholesky(damped(inputs, damping)), np.linalg.cholesky(damped(gradients, damping))
    return np.linalg.solve(s.T, np.linalg.solve(t.T, cut(t.T @ weight @ s, rank)).T).T


def grail(inputs: Matrix, kept: NDArray[np.int64], damping: float = 1e-3) -> Matrix:
    """Compensation by the Gram matrix of the reader's inputs (GRAIL): R = A_FJ (A_JJ + damping)^-1, the reader W R.

    Spectral pruning restores by the same matrix; here which nodes are kept is decided by something else.
    """
    chosen = damped(inputs[np.ix_(kept, kept)], damping)
    return np.linalg.solve(chosen, inputs[np.ix_(kept, range(len(inputs)))]).T


def dropped(nodes: int, kept: NDArray[np.int64]) -> Matrix:
    """The reader's columns of nodes that go are left out, and nothing makes up for them."""
    return np.eye(nodes)[:, kept]


def group_magnitude(*weights: Matrix) -> Vector:
    """Torch-Pruning's group importance (Fang et al. 2023, Eq. 5): the squared norms of all that a node touches.

    Each matrix has a row a node: a producer's weight, a reader's transposed.
    """
    return np.sum([np.square(one).sum(axis=1) for one in weights], axis=0)


def best(importance: Vector, size: int) -> NDArray[np.int64]:
    """The numbers of the most important nodes, in the network's order."""
    return np.sort(np.argsort(-importance, kind="stable")[:size])
