"""Naive twins, straight from the papers: they hold the rows, form every inverse, and repeat everything at every step.

Here matrices are as the papers print them: X is d x n (columns are samples), W is m x d, Z = W X. `dalr_stream` never
sees the rows; agreeing with these is what its tests are about.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

PINV_CUTOFF = 1e-11


# --- which positions of a sample are chosen ---------------------------------------------------------------------


def splitmix(number, seed):
    """One output of splitmix64 (Steele, Lea and Flood 2014) in integers, as 53 bits of a fraction."""
    whole = 2**64
    z = ((number + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) % whole
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % whole
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % whole
    return ((z ^ (z >> 31)) >> 11) / 2**53


def chosen_positions(kept, most, seed, sample):
    """The positions of one sample that are watched, ascending: of those kept, the `most` whose rank hashes smallest."""
    ranked = sorted(enumerate(map(int, kept)), key=lambda ranked: splitmix(sample * 2**32 + ranked[0], seed))
    return sorted(position for _, position in (ranked if most is None else ranked[:most]))


# --- DALR (Masana et al. 2017, section 4) -------------------------------------------------------------------------


def published(weight, x, lam):
    """Eqs. 10 and 11: A = U of the SVD of Z, B' = U' Z X' (X X' + lam I)^-1. Returns (U, M), C_k = U_k U_k' M."""
    z = weight @ x
    u = np.linalg.svd(z, full_matrices=True)[0]
    return u, z @ x.T @ np.linalg.pinv(x @ x.T + lam * np.eye(x.shape[0]), hermitian=True)


def augmented(x, z, lam, anchor=None):
    """Eqs. 8 and 9: X* = (X, sqrt(lam) I), Z* = (Z, 0); anchored: Z* = (Z, sqrt(lam) W)."""
    d = x.shape[0]
    tail = np.zeros((z.shape[0], d)) if anchor is None else np.sqrt(lam) * anchor
    return np.hstack([x, np.sqrt(lam) * np.eye(d)]), np.hstack([z, tail])


def reduced_rank_regression(x, z):
    """min ||Z - C X||, rank C <= k (Izenman 1975): least squares, then the SVD of what it fits. Returns (U, M)."""
    m = np.linalg.lstsq(x.T, z.T, rcond=PINV_CUTOFF)[0].T
    return np.linalg.svd(m @ x, full_matrices=True)[0], m


def reduced_rank_curve(x, z, max_rank):
    """The least ||Z - C X||^2 at ranks 0..max_rank: what least squares leaves, and the tail of singular values."""
    _, m = reduced_rank_regression(x, z)
    fitted = m @ x
    values = np.zeros(max(max_rank, *fitted.shape))
    found = np.linalg.svd(fitted, compute_uv=False)
    values[: found.size] = found**2
    left = np.sum((z - fitted) ** 2)
    return np.array([left + values[k:].sum() for k in range(max_rank + 1)])


def squared_error(weight, bias, up, down, new_bias, x):
    """||Y - Y_k||^2 with Y = W X + b 1' and Y_k = up down X + b_k 1'."""
    y = weight @ x + bias[:, None]
    return np.sum((y - (up @ (down @ x) + new_bias[:, None])) ** 2)


# --- weighted by the gradients of the loss, and shrinkage ---------------------------------------------------------


def symmetric_root(matrix, power):
    """matrix^power by its eigenvalues, of a positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.maximum(values, 0.0) ** power) @ vectors.T


def head_projection(readers, read, size):
    """(p, p) of rank r: the truncated SVD of S^(1/2) R^(1/2), which loses least of tr S (I - P) R (I - P)'."""
    root = symmetric_root(readers, 0.5)
    u = np.linalg.svd(root @ symmetric_root(read, 0.5))[0][:, :size]
    return symmetric_root(readers, -0.5) @ u @ u.T @ root


def weighted(weight, inputs, gradients, k):
    """C = G^-1/2 SVD_k(G^1/2 W A^1/2) A^-1/2 (Generalized Fisher-Weighted SVD), A (d, d) and G (m, m) regular."""
    u, s, v = np.linalg.svd(symmetric_root(gradients, 0.5) @ weight @ symmetric_root(inputs, 0.5))
    best = u[:, :k] @ np.diag(s[:k]) @ v[:k]
    return symmetric_root(gradients, -0.5) @ best @ symmetric_root(inputs, -0.5)


def weighted_loss(gap, inputs, gradients):
    """tr(G dW A dW')."""
    return np.trace(gradients @ gap @ inputs @ gap.T)


def weighted_by_turns(weight, inputs, gradients, start, rounds):
    """The same minimum from a random start: U and V of C = U V' by turns, each the least squares of the other."""
    v = start
    for _ in range(rounds):
        u = weight @ inputs @ v @ np.linalg.inv(v.T @ inputs @ v)
        v = weight.T @ gradients @ u @ np.linalg.inv(u.T @ gradients @ u)
    return u @ v.T


def oas(x, centred):
    """Oracle approximating shrinkage (Chen et al. 2010, Eq. 23) of X d x n: returns rho and the shrunk covariance."""
    d, n = x.shape
    s = second_order(x, centred)
    target = np.trace(s) / d * np.eye(d)
    above = (1 - 2 / d) * np.trace(s @ s) + np.trace(s) ** 2
    below = (n + 1 - 2 / d) * (np.trace(s @ s) - np.trace(s) ** 2 / d)
    rho = min(above / below, 1.0)
    return rho, (1 - rho) * s + rho * target


# --- two runs, two domains ------------------------------------------------------------------------------------------


def cross_moments(x, z):
    """Z X' about zero and about the means, X d x n and Z m x n, in extended precision."""
    x, z = x.astype(np.longdouble), z.astype(np.longdouble)
    about = (z - z.mean(axis=1, keepdims=True)) @ (x - x.mean(axis=1, keepdims=True)).T
    return (z @ x.T).astype(float), about.astype(float)


def standardised_gap(x_t, x_s):
    """Difference of means over the pooled standard deviation, for nodes that vary: Cohen's d, population normalised."""
    pooled = (x_t.var(axis=1) * x_t.shape[1] + x_s.var(axis=1) * x_s.shape[1]) / (x_t.shape[1] + x_s.shape[1])
    return (x_t.mean(axis=1) - x_s.mean(axis=1)) / np.sqrt(pooled)


# --- spectral pruning and MoMaSP (Dillard et al. 2020, section 3) -------------------------------------------------


def row_space(x, subset):
    """Orthonormal rows spanning those of X_J, whatever the units of the nodes."""
    chosen = x[list(subset)]
    norms = np.linalg.norm(chosen, axis=1, keepdims=True)
    _, values, right = np.linalg.svd(chosen / np.where(norms > 0, norms, 1.0), full_matrices=False)
    return right[values > PINV_CUTOFF]


def information_retention(x, subset):
    """Eq. 2 on the rows: Sigma_FJ Sigma_JJ^-1 Sigma_JF is X X_J^+ X_J X' / n."""
    if len(subset) == 0 or not x.any():
        return 0.0
    return np.sum((x @ row_space(x, subset).T) ** 2) / np.sum(x**2)


def unexplained(x, subset, node):
    """Share of the node's own second moment that the subset leaves."""
    own = np.sum(x[node] ** 2)
    if own == 0:
        return 0.0
    basis = row_space(x, subset) if subset else np.zeros((0, x.shape[1]))
    return np.sum((x[node] - x[node] @ basis.T @ basis) ** 2) / own


def every_gain(x, subset):
    """What each node would add to the retention of the subset: ||R_:j||^2 / R_jj, R from what the rows have left."""
    basis = row_space(x, subset) if len(subset) else np.zeros((0, x.shape[1]))
    left = x - (x @ basis.T) @ basis
    left -= (left @ basis.T) @ basis
    own = np.sum(left**2, axis=1)
    own[list(subset)] = 0.0
    news = own > PINV_CUTOFF * np.sum(x**2, axis=1)
    return np.where(news, np.sum((left @ left.T) ** 2, axis=1) / np.where(news, own, 1.0), 0.0) / np.sum(x**2)


def retention_in_metric(x, subset, metric):
    """tr(M Sigma_FJ Sigma_JJ^-1 Sigma_JF) / tr(M Sigma), on the rows."""
    fitted = (x @ (basis := row_space(x, subset)).T) @ basis if len(subset) else np.zeros_like(x)
    return np.sum(fitted * (metric @ fitted)) / np.sum(x * (metric @ x))


def every_gain_in_metric(x, subset, metric):
    """What each node would add to that: R_:j' M R_:j / R_jj over tr(M Sigma), R from what the rows have left."""
    basis = row_space(x, subset) if len(subset) else np.zeros((0, x.shape[1]))
    left = x - (x @ basis.T) @ basis
    left -= (left @ basis.T) @ basis
    own = np.sum(left**2, axis=1)
    own[list(subset)] = 0.0
    news = own > PINV_CUTOFF * np.sum(x**2, axis=1)
    columns = left @ left.T
    gains = np.sum(columns * (metric @ columns), axis=0) / np.where(news, own, 1.0)
    return np.where(news, gains, 0.0) / np.sum(x * (metric @ x))


def information_retention_by_pinv(sigma, subset):
    """Eq. 2 as printed, for a regular Sigma."""
    subset = list(subset)
    sigma_fj = sigma[:, subset]
    return np.trace(sigma_fj @ np.linalg.pinv(sigma[np.ix_(subset, subset)]) @ sigma_fj.T) / np.trace(sigma)


def second_order(x, centered):
    """C: covariance about the mean, or the papers' uncentred Sigma."""
    y = about_mean(x) if centered else x
    return y @ y.T / x.shape[1]


def about_mean(x):
    """X less its mean; exactly zero for constant nodes."""
    y = x - x[:, :1]
    return y - y.mean(axis=1, keepdims=True)


def live(c_t, share):
    """Nodes whose variance on the target is above `share` of the median positive one."""
    variance = np.diagonal(c_t)
    positive = variance[variance > 0]
    return variance > share * np.median(positive) if positive.size else np.zeros(variance.size, bool)


def discrepancy(x_t, x_s, rows, columns, centered):
    """The two norms of Eqs. 3 and 4 over given rows and columns of S o (C_s - C_t)."""
    c_t, c_s = second_order(x_t, centered), second_order(x_s, centered)
    gap = (x_s.mean(axis=1) - x_t.mean(axis=1))[rows]
    diagonal = np.diagonal(c_t)
    s = np.array([[(diagonal[i] * diagonal[j]) ** -0.25 for j in columns] for i in rows])
    return np.linalg.norm(gap) + np.linalg.norm(s * (c_s - c_t)[np.ix_(rows, columns)])


def momasp_scores(x, taken, candidates, *, strength, regulariser):
    """Eq. 5 for each candidate; `regulariser(node)` is R_j."""
    v = np.array([information_retention(x, [*taken, j]) for j in candidates])
    if strength == 0:
        return v
    r = np.array([regulariser(j) for j in candidates])
    if r.max() == 0:
        return v
    return v - strength * np.std(v) * r / r.max()


def node_regulariser(x_t, x_s, live_nodes, centered):
    """Eq. 4."""
    columns = list(np.flatnonzero(live_nodes))
    return lambda j: discrepancy(x_t, x_s, [j], columns, centered)


def subset_regulariser(x_t, x_s, taken, centered):
    """Eq. 3 for the subset with the candidate."""
    return lambda j: discrepancy(x_t, x_s, [*taken, j], [*taken, j], centered)


def greedy_spectral(sigma):
    """Algorithm 1 without regulariser, on a regular Sigma: always the node of largest r."""
    taken = []
    while len(taken) < len(sigma):
        candidates = [j for j in range(len(sigma)) if j not in taken]
        scores = [information_retention_by_pinv(sigma, [*taken, j]) for j in candidates]
        taken.append(candidates[int(np.argmax(scores))])
    return taken


def sum_by_names(records, *, most, beginning=""):
    """The sum of records by name: in the order of the names where they are few, else of those that begin alike."""
    if len(records) <= most:
        return pairwise_sum([records[name] for name in sorted(records)])
    place = len(beginning)
    signs = sorted({name[place] for name in records})
    groups = [{name: record for name, record in records.items() if name[place] == sign} for sign in signs]
    return pairwise_sum(
        [sum_by_names(group, most=most, beginning=beginning + sign) for sign, group in zip(signs, groups, strict=True)]
    )


def pairwise_sum(records):
    """((0 + 1) + (2 + 3)) + ((4 + 5) + ...: on the left the largest power of two below the whole."""
    if len(records) == 1:
        return records[0]
    half = 1
    while 2 * half < len(records):
        half *= 2
    return pairwise_sum(records[:half]) + pairwise_sum(records[half:])


def exact_greedy_spectral(moments, limit):
    """Algorithm 1 in rational numbers, on C + m m' of the moments as they stand."""
    d = moments.features
    mean = [Fraction(value) for value in moments.mean]
    r = [[Fraction(moments.scatter[i, j]) / moments.count + mean[i] * mean[j] for j in range(d)] for i in range(d)]
    taken = []
    while len(taken) < limit:
        left = [j for j in range(d) if j not in taken and r[j][j] > 0]
        p = max(left, key=lambda j: (sum(value * value for value in r[j]) / r[j][j], -j))
        r = [[r[i][j] - r[i][p] * r[p][j] / r[p][p] for j in range(d)] for i in range(d)]
        taken.append(p)
    return taken
