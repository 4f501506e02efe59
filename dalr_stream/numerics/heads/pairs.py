"""Which rotary pairs queries and keys keep, where positions are rotated into them.

Positions turn each pair of dimensions by angles in proportion to a frequency a_i of its own. With pairs as complex
numbers, q at a distance of t from k scores

    q'k(t) = sum over pairs i of Re conj(q_i) k_i e^(j a_i t)  +  q'k of the dimensions that are not rotated

so pairs cannot be mixed with one another; whole ones can go. Turned or scaled within itself, keys by c and queries by
1/conj(c), a pair is the same one. Averaged over distances, the products of different frequencies vanish, and with
queries and keys independent

    E |what a set of pairs gives|^2 = sum over the set of 1/2 E|q_i|^2 E|k_i|^2

exactly where angles are spread evenly over the circle. The mean of the keys counts: turned by positions it is not what
all keys share, of which softmax takes no notice. The sum over pairs is also the order of the worst case at any one
distance, at most (sum of sqrt(E|q_i|^2 E|k_i|^2))^2. Pairs so slow that no text turns them by much are where this is
off: their keys' mean is shared all but for a little, and products among them stay.

That average is E |q' M k|^2 = tr S R with S = E[q q'] and R the second moment of keys averaged over turns: half the
trace of its own in each pair, nothing between pairs. With what the loss feels of keys, before they are rotated, in the
place of S, R is what it is, and pairs are not independent: they are left out one after the other, each time the one
that costs least. Where none has to do with another, that is the best set of every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.types import Indices, Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class KeptPairs:
    """The pairs that heads keep, of every number: those of all heads, as they are given the same angles."""

    order: Indices
    """(R/2,): the first a are kept."""
    losses: Vector
    """(R/2 + 1,): what is lost of the scores where the first 0..R/2 are."""

    def split(self, size: int, rest: Vector) -> int:
        """Return how many pairs heads of `size` dimensions keep, one at least, where the others lose least.

        `rest` (p - R + 1,) has what is lost where 0..p - R of the dimensions that are not rotated are kept.
        """
        least, most = max(1, -(-(size - len(rest) + 1) // 2)), min(len(self.order), size // 2)
        pairs = np.arange(least, most + 1)
        return int(pairs[np.argmin(self.losses[pairs] + rest[size - 2 * pairs])])


def kept_pairs(readers_and_read: Sequence[tuple[Matrix, Matrix]], layout: HeadLayout) -> KeptPairs:
    """Return the order in which pairs are kept, by S and R (p, p) of each group. Cost: (R/2)^2 comparisons."""
    products = np.sum([readers * read for readers, read in readers_and_read], axis=0)
    together = _by_pairs(products, layout)
    left = list(range(len(together)))
    gone: list[int] = []
    losses, lost = [0.0], 0.0
    beside = np.zeros(len(together))
    """Of each pair, its products with those that are gone."""
    while left:
        costs = together.diagonal()[left] + 2 * beside[left]
        first = left.pop(int(np.argmin(costs)))
        lost = max(lost, lost + float(costs.min()))
        beside += together[first]
        gone.append(first)
        losses.append(lost)
    return KeptPairs(np.array(gone[::-1], np.int64), np.array(losses[::-1]))


def _by_pairs(products: Matrix, layout: HeadLayout) -> Matrix:
    """(R/2, R/2): the sum of products (p, p) over the dimensions of each two pairs."""
    one, other = layout.pairs.T
    rows = products[one] + products[other]
    return np.asarray(rows[:, one] + rows[:, other])


def keys_as_met(covariance: Matrix, mean: Vector, layout: HeadLayout, *, turned: bool) -> Matrix:
    """Return R (p, p): the second moment of a head's keys as queries meet them, of which softmax takes notice.

    `turned` averages it over positions. Dimensions that are not rotated count about their mean, as for any attention.
    """
    rotated = layout.rotated
    if not rotated:
        return covariance
    met = np.zeros_like(covariance)
    met[rotated:, rotated:] = covariance[rotated:, rotated:]
    moment = covariance[:rotated, :rotated] + np.outer(mean[:rotated], mean[:rotated])
    if turned:
        halves = moment.diagonal()[layout.pairs].mean(axis=1)
        moment = np.zeros_like(moment)
        moment[layout.pairs, layout.pairs] = halves[:, None]
    met[:rotated, :rotated] = moment
    return met


def dimensions_of(pairs: Indices, layout: HeadLayout) -> Indices:
    """(2 a,): the dimensions of some pairs, in the order in which heads that have these alone have them."""
    chosen = layout.pairs[pairs]
    return np.asarray(chosen.ravel() if layout.interleaved else chosen.T.ravel())
