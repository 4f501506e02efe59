"""Layer after layer in numpy: all rows at once, from the formulas."""

import numpy as np
import oracles

RELATIVE = 1e-2
"""The twins' ridge."""


def twin_factors(method, rank, weight, bias, x, y):
    """C (m, d) of rank k and its bias, on rows."""
    affine, lam = method.endswith("affine"), RELATIVE
    c, o = (x.mean(0), y.mean(0)) if affine else (np.zeros(x.shape[1]), bias)
    lam *= np.mean(np.sum((x - c) ** 2, axis=0))
    anchor = weight if "anchored" in method else None
    rows, targets = oracles.augmented((x - c).T, (y - o).T, lam, anchor)
    u, m = oracles.reduced_rank_regression(rows, targets)
    if "published" in method:
        u = np.linalg.svd((y - o).T, full_matrices=True)[0]
    product = u[:, :rank] @ u[:, :rank].T @ m
    return product, o - product @ c


def twin_reader(kept, weight, psi, z, ridge):
    """V (m, k) and its bias, on rows: towards z from the kept nodes, shrunk towards the reader of the restored ones."""
    sigma, n = psi.T @ psi / len(psi), len(psi)
    lam = ridge * np.trace(sigma) / len(sigma)
    restore = sigma[:, kept] @ np.linalg.pinv(sigma[np.ix_(kept, kept)] + lam * np.eye(len(kept)))
    restore[kept] = np.eye(len(kept))
    c, o = psi[:, kept].mean(0), z.mean(0)
    rows, targets = oracles.augmented((psi[:, kept] - c).T, (z - o).T, n * lam, weight @ restore)
    v = np.linalg.lstsq(rows.T, targets.T, rcond=None)[0].T
    return v, o - v @ c


class TwinBlocks:
    """What `Blocks` of the tests computes, layer by layer, with weights that may be replaced."""

    def __init__(self, model):
        self.blocks = len(model.up)
        self.weights = {
            name: (layer.weight.detach().numpy(), layer.bias.detach().numpy())
            for name, layer in model.named_modules()
            if hasattr(layer, "weight")
        }

    def run(self, x):
        """What each layer reads and gives, and the stream before it is added to."""
        read, given, before = {}, {}, {}

        def layer(name, value):
            weight, bias = self.weights[name]
            read[name], given[name] = value, value @ weight.T + bias
            return given[name]

        stream = layer("stem", x)
        for number in range(self.blocks):
            inner = layer(f"down.{number}", np.maximum(layer(f"up.{number}", stream), 0.0))
            before[f"down.{number}"] = stream
            stream = inner + stream
        return layer("head", stream), read, given, before

    def compress(self, x, plan, *, mending):
        """Return the outputs of the network compressed by `plan`, layer -> (method, size), each at its turn."""
        _, _, given, then = self.run(x)
        small = object.__new__(TwinBlocks)
        small.blocks, small.weights = self.blocks, dict(self.weights)
        for name, (method, size) in plan.items():
            _, read, _, now = small.run(x)
            if method == "spectral":
                down = name.replace("up", "down")
                psi, z = read[down], given[down] + (then[down] - now[down] if mending else 0.0)
                kept = sorted(oracles.greedy_spectral(psi.T @ psi / len(psi))[:size])
                weight, _ = small.weights[down]
                v, shift = twin_reader(kept, weight, psi, z, RELATIVE)
                wide = np.zeros(weight.shape)
                wide[:, kept] = v
                small.weights[down] = wide, shift
                continue
            z = given[name] + (then[name] - now[name] if mending and name in then else 0.0)
            small.weights[name] = twin_factors(method, size, *small.weights[name], read[name], z)
        return small.run(x)[0]
