"""The metric in which errors of nodes count: what those that read them make of an error.

An error e of the nodes is W_r e at the outputs of a reader r, and with the gradients g of the loss by these outputs it
costs about 1/2 (g'W_r e)^2. So errors are compared in

    readers   M = sum over readers and taps of W_rt'W_rt             what the readers' outputs lose
    loss      M = sum of n_r W_rt'G_r W_rt,  G_r = E[g g']           what the loss does, n_r positions in a sample

where W_rt (m, d) has the weights of one tap of a kernel, or of one place of a flattened image: errors at different
places are taken as independent. M = I is spectral pruning as the paper has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.psd import require_finite
from dalr_stream.numerics.methods import Metric
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, real_array
