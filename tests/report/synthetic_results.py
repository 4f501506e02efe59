"""Made-up but plausible `Results`: two layers, fourteen methods, shapes and figures like the demo's.

Curves follow simple closed forms (a power-law spectrum, a logistic accuracy), so no test has to wait for a solver;
the headline is read off the accuracy curves by the plainest loop. Nothing here is imported from the report's own code
but its record.
"""

from __future__ import annotations

import dataclasses
import math

from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.records.results import (
    DomainActivity,
    ErrorCurve,
    HeadlineRow,
    LayerResults,
    NetworkSize,
    Results,
    RetentionCurve,
    ScoreCurve,
    ScorePoint,
    Spectra,
)
from dalr_stream.report.records.stability import SelectionStability, Stability

BASELINE = 0.9739
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LOW_RANK = [method for method in Method if method.family is Family.LOW_RANK]
HEADS = [method for method in Method if method.family is Family.HEADS]
HEAD_SIZE = 512
SELECTIONS = [method for method in Method if method.family is Family.SELECTION]

HALF_WAY = {
    Method.SVD: 12.0,
    Method.SVD_BC: 7.5,
    Method.DALR_PUBLISHED: 3.6,
    Method.DALR_PUBLISHED_BC: 3.5,
    Method.DALR_PUBLISHED_AFFINE: 3.1,
    Method.DALR_OPTIMAL: 3.3,
    Method.DALR_OPTIMAL_AFFINE: 2.7,
    Method.DALR_ANCHORED: 2.9,
    Method.DALR_ANCHORED_AFFINE: 1.9,
    Method.DALR_WEIGHTED_AFFINE: 1.95,
    Method.PRUNE_MEAN: 14.0,
    Method.PRUNE_MAX: 17.0,
    Method.SPECTRAL: 2.4,
    Method.SPECTRAL_READERS: 2.3,
    Method.SPECTRAL_WEIGHTED: 2.2,
    Method.MOMASP_NODE: 1.7,
    Method.MOMASP_SUBSET: 2.0,
    Method.MOMASP_WEIGHTED: 1.8,
    Method.HEADS: 2.5,
    Method.HEADS_WEIGHTED: 2.1,
}
"""Rank, or a twelfth of the kept nodes, at which a method reaches half of the baseline."""


def accuracy(method: Method, size: float, chance: float) -> float:
    reach = 1 / (1 + (HALF_WAY[method] / size) ** 3.0)
    wobble = 0.002 * math.sin(3 * size + 7 * HALF_WAY[method])
    return round(min(chance + (BASELINE + 0.002 - chance) * reach + wobble * reach, 0.9795), 4)


def error_curve(method: Method, length: int, *, heldout: bool) -> ErrorCurve:
    spread = 0.35 + 0.02 * HALF_WAY[method]
    affine = 0.82 if "affine" in method.value or method is Method.SVD_BC else 1.0
    training = [affine * math.exp(-((rank / length) ** 0.5) / spread * 2.6) for rank in range(length + 1)]
    training[-1] = 0.0 if method is not Method.DALR_PUBLISHED else 3.1e-3
    overfit = 0.12 if "published" in method.value or "optimal" in method.value else 0.015
    kept_apart = [math.hypot(error, overfit * math.sqrt(rank / length)) for rank, error in enumerate(training)]
    return ErrorCurve(method.value, tuple(training), tuple(kept_apart) if heldout else None)


def low_rank_curve(method: Method, m: int, d: int, C: int) -> ScoreCurve:
    points = [
        ScorePoint(k, k * (m + d), k * (m + d) + m * C, accuracy(method, k, 0.1)) for k in RANKS if k * (m + d) < m * d
    ]
    return ScoreCurve(method.value, tuple(points))


def selection_curve(method: Method, m: int, d: int, C: int) -> ScoreCurve:
    sizes = {min((k * (m + d) + m * C) // (d + C), m) for k in RANKS if k * (m + d) < m * d}
    sizes |= {8, 16, 32}
    points = [ScorePoint(s, None, s * (d + C), accuracy(method, s / 12, 0.1)) for s in sorted(sizes)]
    return ScoreCurve(method.value, tuple(points))


def heads_curve(method: Method, m: int, d: int, C: int) -> ScoreCurve:
    left = {k: m * d * k // HEAD_SIZE for k in RANKS if k < HEAD_SIZE}
    return ScoreCurve(
        method.value, tuple(ScorePoint(k, own, own + m * C, accuracy(method, k, 0.1)) for k, own in left.items())
    )


def headline(curves: tuple[ScoreCurve, ...], drop: float) -> tuple[HeadlineRow, ...]:
    reached = {
        curve.method: next((point for point in curve.points if point.score >= BASELINE - drop), None)
        for curve in curves
    }
    svd = reached.get("svd")
    rows = []
    for method, point in reached.items():
        if point is None:
            rows.append(HeadlineRow(method, None, None, None, None, None))
            continue
        ratio = None
        if Method(method) in HEADS:
            pass
        elif svd is not None and point.layer_parameters is not None:
            ratio = svd.layer_parameters / point.layer_parameters
        elif svd is not None:
            ratio = svd.pair_parameters / point.pair_parameters
        rows.append(HeadlineRow(method, point.size, point.layer_parameters, point.pair_parameters, point.score, ratio))
    return tuple(rows)


def activity(domain: str, rows: int, features: int, decay: float) -> DomainActivity:
    rates = tuple(math.exp(-decay * (index / features) ** 1.3) * 0.97 for index in range(features))
    total, running = sum(rates), 0.0
    for index, rate in enumerate(rates, 1):
        running += rate
        if running >= total / 2:
            return DomainActivity(domain, rows, rates, index / features)
    raise AssertionError


def stability(length: int, nodes: int, *, enough: bool, selected: bool = True) -> Stability:
    bars = tuple(0.01 * math.exp(-rank / length) for rank in range(length + 1))
    held = tuple(1 - 0.3 * math.exp(-size / nodes) for size in range(1, nodes + 1))
    return Stability(
        shards=8,
        method="dalr_anchored_affine",
        enough=enough,
        answer=f"The calibration set is {'large enough' if enough else 'too small'}: the error is 0.2 \u00b1 0.01.",
        rule="Large enough: a rule with a threshold of 5%.",
        training_error=bars,
        unseen=tuple(40 * bar for bar in bars),
        unseen_error=bars,
        heldout_error=bars if enough else None,
        turn=bars,
        selection=SelectionStability("spectral", "Half of the layer kept: 74% of the nodes.", held, held, held)
        if selected
        else None,
    )


def layer(
    name: str, m: int, d: int, next_layer: str | None, C: int, *, drop: float = 0.01, heldout: bool = True
) -> LayerResults:
    curves = tuple(low_rank_curve(method, m, d, C) for method in LOW_RANK)
    if next_layer is not None:
        curves += tuple(selection_curve(method, m, d, C) for method in SELECTIONS)
        curves += tuple(heads_curve(method, m, d, C) for method in HEADS)
    smaller = min(m, d)
    return LayerResults(
        name=name,
        outputs=m,
        inputs=d,
        next_layer=next_layer,
        next_outputs=C,
        drop=drop,
        activity=(activity("source", 5000, d, 2.2), activity("target", 297, d, 9.5)),
        error_curves=tuple(error_curve(method, smaller, heldout=heldout) for method in LOW_RANK),
        score_curves=curves,
        retention_curves=tuple(
            RetentionCurve(
                method.value,
                tuple(
                    1 - (1 - size / m) * math.exp(-size / (0.04 * m) / HALF_WAY[method] ** 0.5)
                    for size in range(1, m + 1)
                ),
            )
            for method in (SELECTIONS if next_layer else [])
        ),
        spectra=Spectra(
            tuple(9.0 * (1 + i) ** -0.45 for i in range(smaller)),
            tuple(870.0 * (1 + i) ** -1.35 if i < 297 else 0.0 for i in range(smaller)),
        ),
        headline=headline(curves, drop),
    )


def results(*layers: LayerResults, **changes: object) -> Results:
    """Two layers as in the demo unless others are given."""
    whole = Results(
        name="Printed glyphs to handwritten digits",
        provenance={
            "dalr_stream": "0.1.0",
            "run": {
                "file": "pipelines/digits/run.toml",
                "fingerprint": "9f2c61be0d1f4a7781c0a4d2c6b5e93d5ab0f37f11c2f0f64c1b8a90de27f4aa",
                "seed": 0,
            },
            "rows": {"source": 5000, "target": {"training": 297, "held-out": 33, "test": 1467}},
            "solve": {"ridge": 1e-3, "ranks": [1, 2, 4, 8, 16, 32, 64, 128, 256], "cuda": False, "device": None},
            "versions": {"python": "3.11.9", "numpy": "2.1.3", "torch": "2.5.1", "zarr": "3.0.8"},
        },
        metric="test accuracy",
        baseline_score=BASELINE,
        layers=layers or (layer("fc6", 512, 1024, "fc7", 512), layer("fc7", 512, 512, "fc8", 10)),
        sizes=(
            NetworkSize("uncompressed", 816_330, 3_268_120, BASELINE),
            NetworkSize("DALR anchored, affine (fc6 rank 8, fc7 rank 8)", 54_474, 221_440, 0.9659),
            NetworkSize("MoMaSP (node), fc6 at 96 nodes", 167_114, 671_200, None),
        ),
        decisions=(
            "fc6: 297 training samples for 1,024 inputs; the moments are rank-deficient by construction.",
            "fc6: 14 inputs never fire on the target domain; they are listed last by every selection.",
        ),
        caveats=(
            "The domains are small and clean; the network is not VGG19.",
            "One seed. The README gives three with their spread.",
        ),
    )
    return dataclasses.replace(whole, **changes)
