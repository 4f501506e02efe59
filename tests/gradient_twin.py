"""Naive twin of gradient rows: one sample at a time, alone in its batch, by a number added to what a layer gives.

Nothing is shared with the package but the definition: which bits of Philox are a sample's signs, and what v is.
"""

import numpy as np
import torch


def bits(seed, sample, draw, position, words):
    """The random bits of one position of one draw of a sample, lowest first; samples begin a block of four words."""
    counter = [sample * -(-words // 4), position, 0, 0]
    philox = np.random.Philox(counter=counter, key=[seed, draw])
    return [(int(word) >> bit) & 1 for word in np.atleast_1d(philox.random_raw(words)) for bit in range(64)]


def signs(seed, sample, draw, positions, features):
    """(T, C): 1 where a bit is 0, -1 where it is 1."""
    words = -(-features // 64)
    drawn = [bits(seed, sample, draw, position, words) for position in range(positions)]
    return np.array([[1 - 2 * bit for bit in row[:features]] for row in drawn], float)


def uniform(seed, sample, draw, positions):
    """(T,): the highest 53 bits of the first word of each position."""
    rows = [bits(seed, sample, draw, position, 1)[11:] for position in range(positions)]
    return [sum(bit << place for place, bit in enumerate(row)) for row in rows]


def softmax(o):
    e = np.exp(o - o.max())
    return e / e.sum()


def class_vectors(o, e):
    """(T, C): (diag(p) - p p')^1/2 e, written as the matrix that it is: diag(r) - p r', r = sqrt(p)."""
    rows = []
    for scores, signs_here in zip(o, e, strict=True):
        p = softmax(scores)
        rows.append((np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))) @ signs_here)
    return np.array(rows)


def sampled_vectors(o, numbers):
    """(T, C): p - onehot(y), y the first class at which the sum of p exceeds the number."""
    rows = []
    for scores, number in zip(o, numbers, strict=True):
        p = softmax(scores)
        y = int(np.searchsorted(np.cumsum(p), number * 2.0**-53 * np.cumsum(p)[-1], side="right"))
        rows.append(p - np.eye(len(p))[y])
    return np.array(rows)


def gradients(model, module, inputs, end, vector):
    """Gradients by what each call of `module` gives, for one sample: `vector(o)` goes back from `end(returned)`."""
    added = []

    def hook(_module, _arguments, output):
        added.append(torch.zeros_like(output, requires_grad=True))
        return output.detach().clone() + added[-1] if not output.requires_grad else output + added[-1]

    handle = module.register_forward_hook(hook)
    try:
        with torch.enable_grad():
            o = end(model(**inputs) if isinstance(inputs, dict) else model(inputs))
            v = torch.from_numpy(np.asarray(vector(o.detach().double().numpy()[0]))).to(o).reshape(o.shape)
            return [gradient.numpy() for gradient in torch.autograd.grad(o, added, v)]
    finally:
        handle.remove()
