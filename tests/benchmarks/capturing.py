"""Network to sums in one pass, against the forward pass and the matrix product that it consists of."""

from __future__ import annotations

import torch
from accumulating import syrk
from timing import Row, against, race
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream

BARS = {"dalr_stream, direct": 1.15, "dalr_stream, direct, a tenth held out": 1.15}
BATCH = 256


def direct(n: int, d: int, turns: int) -> list[Row]:
    """n samples through a layer of d inputs, no activations kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d // 2, d), nn.ReLU(), nn.Linear(d, d)).eval()
    batches = list(torch.randn(n, d // 2).split(BATCH))
    layers = ds.network.select_layers(model, ["2"])
    with torch.inference_mode():
        rows = torch.cat([model[:2](batch) for batch in batches]).numpy()

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    def accumulated(share: float) -> object:
        return accumulate_stream(model, batches, layers, folding=ds.Folding(ds.HoldoutRule(share)))

    seconds = race(
        {
            "forward": forward,
            "dsyrk": syrk(rows),
            "dalr_stream, direct": lambda: accumulated(0.0),
            "dalr_stream, direct, a tenth held out": lambda: accumulated(0.1),
        },
        turns,
    )
    together = seconds.pop("forward") + seconds.pop("dsyrk")
    return against("forward + dsyrk in memory", {"forward + dsyrk in memory": together, **seconds}, BARS)
