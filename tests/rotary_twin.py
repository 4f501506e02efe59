"""Rotary attention written out: queries and keys turned, scores at every distance, every set of pairs."""

import itertools

import numpy as np


def turned(vectors, position, frequencies, pairs):
    """Rows (n, p) with each pair of dimensions turned by position x its frequency; others as they are."""
    found = np.array(vectors)
    for (one, other), frequency in zip(pairs, frequencies, strict=True):
        cos, sin = np.cos(position * frequency), np.sin(position * frequency)
        found[:, one] = vectors[:, one] * cos - vectors[:, other] * sin
        found[:, other] = vectors[:, one] * sin + vectors[:, other] * cos
    return found


def without(vectors, pairs, gone):
    """Rows with the dimensions of some pairs zero."""
    left = np.array(vectors)
    left[:, [dimension for pair in gone for dimension in pairs[pair]]] = 0.0
    return left


def score_error(q, k, frequencies, pairs, gone, distances):
    """Mean square of what scores of all queries with all keys lack without some pairs, over all distances."""
    lack = [
        turned(q, 0, frequencies, pairs) @ turned(k - without(k, pairs, gone), distance, frequencies, pairs).T
        for distance in distances
    ]
    return float(np.mean(np.square(lack)))


def every_set(count, size):
    """The pairs that go where `size` of `count` stay, in every way."""
    for kept in itertools.combinations(range(count), size):
        yield kept, [pair for pair in range(count) if pair not in kept]


def best_pairs(heads, frequencies, pairs, size, distances):
    """The pairs kept, of so many, with which the scores of all heads lack least, and that; heads are (q, k) of rows."""
    errors = {
        kept: sum(score_error(q, k, frequencies, pairs, gone, distances) for q, k in heads)
        for kept, gone in every_set(len(pairs), size)
    }
    return min(errors.items(), key=lambda found: found[1])
