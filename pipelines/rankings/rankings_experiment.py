"""Quality of pictures learnt from rankings, against from scratch, and that network compressed: LCC and SROCC.

    python pipelines/rankings/rankings_experiment.py [SEED ...]

The Shallow network learns from ranked distortions of patches of photographs, without any score; then it is fine-tuned
on a few scored pictures, and another from scratch on the same. The fine-tuned one is compressed: its convolutions but
the first by SVD and DALR at shares of their parameters, judged by LCC on unseen parts of the photographs. Three seeds
by default; figures are kept in `runs/rankings`. The scores are structural similarities. With `--live FOLDER` they are
people's: each seed draws 80 % of LIVE's references to fine-tune on, pictures are seen in random crops of 227 pixels and
judged by the mean over their crops, as on the slides, whose 0.93 beside 0.83 from scratch is of that.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
from dalr_stream.network import parameter_count  # noqa: E402
from kept_results import digest_of, kept_figures  # noqa: E402
from rankings_data import SIDE, Ranked, Scored, ranked  # noqa: E402
from rankings_live import crops, read, split_by_reference  # noqa: E402
from rankings_network import build  # noqa: E402
from rankings_training import calibrate, correlations, learn_ranks, learn_scores  # noqa: E402
from spreads import mean_and_error  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "rankings"
LAYERS = ("3", "6", "8")
"""The convolutions that hold nearly all parameters."""
SHARES = (0.5, 0.25, 0.125)
LIVE_SIDE = 227
"""Of the slides' networks."""
PUBLISHED = {"from scratch": 0.831, "fine-tuned from rankings": 0.930}  # slides: Shallow on LIVE, LCC
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the experiment is."""

    originals: int = 60
    """Patches for rankings: four sets of six pictures each."""
    scored: int = 8
    """Patches whose pictures have scores, 24 each."""
    judged: int = 40
    epochs: int = 20
    scored_epochs: int = 30
    side: int = SIDE
    crops: int = 4
    """Of each of LIVE's pictures."""


def measure(seed: int, scale: Scale, live: Path | None = None) -> Figures:
    """Return LCC and SROCC by network for one seed, on generated pictures or on LIVE's."""
    digest = digest_of({"seed": seed, "live": str(live), **asdict(scale)}, measure)
    found: Figures = kept_figures(RUNS, digest, lambda: _measured(seed, scale, live))
    return found


def _measured(seed: int, scale: Scale, live: Path | None) -> Figures:
    learnt = ranked("train", seed, scale.originals, scale.side)
    if live is None:
        few = slice(4 * scale.scored)  # the first patches, in all four ways
        given = Scored(learnt.pictures[few].flatten(0, 1)[:, None], learnt.scores[few].flatten())
        test = ranked("test", seed, scale.judged, scale.side)
        judged = Scored(test.pictures.flatten(0, 1)[:, None], test.scores.flatten())
    else:
        given, judged = (crops(part, seed, scale.crops, scale.side) for part in split_by_reference(read(live), seed))
    networks = _trained(seed, scale, learnt, given)
    networks |= compressed(networks["fine-tuned from rankings"], given.crops.flatten(0, 1))
    return {name: _judged(network, judged) for name, network in networks.items()}


def _trained(seed: int, scale: Scale, learnt: Ranked, given: Scored) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scratch = build(side=scale.side)
        for module in scratch.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        ranks = copy.deepcopy(scratch)
        learn_ranks(ranks, learnt, seed=seed, epochs=scale.epochs)
        tuned = copy.deepcopy(ranks)
        scores = given.scores.repeat_interleave(given.crops.shape[1])
        calibrate(tuned, given.crops.flatten(0, 1), scores)
        for network in (scratch, tuned):
            learn_scores(network, given.crops.flatten(0, 1), scores, seed=seed, epochs=scale.scored_epochs)
    return {"from scratch": scratch, "rankings alone": ranks, "fine-tuned from rankings": tuned}


def compressed(network: nn.Module, pictures: torch.Tensor) -> dict[str, nn.Module]:
    """Return the network with its convolutions factored, from what they read of some pictures."""
    layers = ds.watch(network, LAYERS)
    rows, every = ds.RowRule(most_patches=None), ds.Folding(holdout=ds.HoldoutRule(0.0))
    found = ds.accumulate(network, list(pictures.split(64)), layers, rows=rows, folding=every)
    small = {}
    for share in SHARES:
        for name, solve in (("SVD", ds.truncated_svd), ("DALR", ds.dalr)):
            factors = {layer: solve(found[layer]) for layer in LAYERS}
            pairs = {layer: one.at_rank(max(int(share * one.break_even_rank), 1)) for layer, one in factors.items()}
            small[f"{name} at {share:.1%} of them"] = ds.compress(network, pairs).eval()
    return small


def _judged(network: nn.Module, judged: Scored) -> Figures:
    linear, rank = correlations(network, judged)
    return {"parameters": parameter_count(network), "LCC": linear, "SROCC": rank}


def table(seeds: Sequence[Figures]) -> str:
    """Return a row for each network: mean +- standard error over the seeds."""
    lines = ["| network | parameters | LCC | SROCC | published LCC, on LIVE |", "|---|---:|---:|---:|---:|"]
    for name, first in seeds[0].items():
        cells = [mean_and_error([one[name][column] for one in seeds], 3) for column in ("LCC", "SROCC")]
        lines.append(f"| {name} | {first['parameters']:,} | {' | '.join(cells)} | {PUBLISHED.get(name, '')} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(3))
    parser.add_argument("--live", type=Path, help="folder of LIVE, release 2: its opinions in place of similarities")
    asked = parser.parse_args(arguments)
    scale = Scale() if asked.live is None else Scale(side=LIVE_SIDE)
    print(table([measure(seed, scale, asked.live) for seed in asked.seeds]))


if __name__ == "__main__":
    main(sys.argv[1:])
