"""The digits network compressed whole: the rows of MoMaSP's Table 6, with and without fine-tuning.

    python pipelines/digits/whole.py [SEED ...]

`fc6` and `fc7` by DALR, the same layers by selection, and the convolutions with them, each at the same share of the
network's parameters; then fine-tuned on the 300 digits in MoMaSP's setting, fully connected layers only, dropout off.
Selections (MoMaSP, node form) are taken at the largest retention, common to all layers, that keeps within the share;
DALR (anchored, affine) at the largest rank common to both layers. Networks that are trained already
(`runs/digits-seed<N>`) are not trained again.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import dalr_stream as ds
from dalr_stream.network import Replacement, Structure, accuracy, parameter_count

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from digits_data import target_test, target_train  # noqa: E402
from digits_trained import trained  # noqa: E402

SHARES = (0.25, 0.10, 0.05)
"""Of the whole network's parameters."""
DENSE, WHOLE = ("fc6", "fc7"), ("features.0", "features.2", "fc6", "fc7")
EPOCHS, BATCH = 30, 50
RESTORE_RIDGE = 1e-3
STEPS = 24
"""Of the bisection on the retention: finer than a single node."""
Build = Callable[[float], nn.Module]


@dataclass(frozen=True, slots=True)
class Solved:
    """One seed's network, and all that was solved for it."""

    model: nn.Module
    structure: Structure | None
    factors: Mapping[str, ds.LowRankFactors]
    selections: Mapping[str, ds.ChannelSelection]

    @classmethod
    def of_seed(cls, seed: int) -> Solved:
        """Train the network or find it trained, stream both domains through it once, and solve."""
        run = trained(seed)
        model, every = run.network, ds.Folding(ds.HoldoutRule(0.0))
        target = target_train(seed=seed)
        layers = ds.watch(model, WHOLE, example=next(iter(target)))
        target_layers, source_layers = (
            ds.accumulate(model, batches, layers, rows=ds.RowRule(most_patches=None), folding=every)
            for batches in (target, run.batches("source"))
        )
        selections = {name: ds.momasp(target_layers[name], source_layers[name]) for name in WHOLE}
        factors = {name: ds.dalr(target_layers[name]) for name in DENSE}
        return cls(model, layers.structure, factors, selections)

    def by_dalr(self, share: float) -> nn.Module:
        """Give `fc6` and `fc7` the largest common rank within the share."""
        most = share * parameter_count(self.model)
        ranks = range(1, min(factors.break_even_rank for factors in self.factors.values()))
        fitting = [rank for rank in ranks if parameter_count(self._factored(rank)) <= most]
        return self._factored(max(fitting, default=1))

    def by_selection(self, layers: Sequence[str], share: float) -> nn.Module:
        """Keep in each layer the nodes of the largest common retention within the share."""
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            fits = parameter_count(self._selected(layers, middle)) <= share * parameter_count(self.model)
            low, high = (middle, high) if fits else (low, middle)
        return self._selected(layers, low)

    def _factored(self, rank: int) -> nn.Module:
        return ds.compress(self.model, {name: factors.at_rank(rank) for name, factors in self.factors.items()})

    def _selected(self, layers: Sequence[str], retention: float) -> nn.Module:
        chosen: dict[str, Replacement] = {
            name: self.selections[name].at_retention(max(retention, 1e-9), ridge=RESTORE_RIDGE) for name in layers
        }
        return ds.compress(self.model, chosen, example=self.structure)


def rows(seed: int) -> dict[tuple[str, float], tuple[float, float, float]]:
    """Return, by row and share, the parameters left and the accuracy before and after fine-tuning."""
    solved, test = Solved.of_seed(seed), target_test(seed=seed)
    setting = ds.FineTuning(epochs=EPOCHS, seed=seed)
    learnt = target_train(seed=seed, batch_size=BATCH)
    builders: dict[str, Build] = {
        "DALR, fc only": solved.by_dalr,
        "selection, fc only": lambda share: solved.by_selection(DENSE, share),
        "selection, conv + fc": lambda share: solved.by_selection(WHOLE, share),
    }
    whole = parameter_count(solved.model)
    found = {("uncompressed", 1.0): (1.0, accuracy(solved.model, test), float("nan"))}
    for share in SHARES:
        for name, build in builders.items():
            small = build(share)
            tuned = ds.finetune(small, learnt, setting)
            found[name, share] = (parameter_count(small) / whole, accuracy(small, test), accuracy(tuned, test))
    return found


def main(seeds: Sequence[int]) -> None:
    """Print the table: means over seeds, and their spread."""
    found = [rows(seed) for seed in seeds]
    print("| | parameters left | accuracy (%) | fine-tuned (%) |\n|---|---:|---:|---:|")
    for key in found[0]:
        left, before, after = zip(*(one[key] for one in found), strict=True)
        tuned = "" if key[0] == "uncompressed" else spread(after)
        print(f"| {key[0]} | {statistics.mean(left):.1%} | {spread(before)} | {tuned} |")


def spread(values: Sequence[float]) -> str:
    """Return mean +- standard deviation, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * deviation:.1f}"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [0, 1, 2])
