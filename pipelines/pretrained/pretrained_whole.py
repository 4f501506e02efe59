"""What compression makes of the whole ImageNet network: parameters, file, multiply-adds and time, seed 0 on digits.

    python pipelines/pretrained/pretrained_whole.py

Times are of this machine as it is now, of the two networks in turns: the ratio is what can be compared.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
import pretrained_data  # noqa: E402
import pretrained_network  # noqa: E402
from dalr_stream.network import Structure, parameter_count  # noqa: E402
from pretrained_measures import Measured, Scale  # noqa: E402

BATCH = 8


def rows(scale: Scale, *, domain: str = "digits", seed: int = 0) -> Iterator[str]:
    """Yield the table in Markdown."""
    one = Measured.of(domain, seed, scale)
    whole = pretrained_network.imagenet()
    whole.head = one.model.head  # type: ignore[assignment]
    pictures = next(iter(pretrained_data.DOMAINS[domain][0](seed=seed, part="test", samples=BATCH)))[0]
    structure = Structure.of(whole, pictures)
    yield "| | parameters | file, MB | multiply-adds, millions a picture | time of a batch, ratio |"
    yield "|---|" + "---:|" * 4
    dalr = partial(one.low_rank, ds.Method.DALR_ANCHORED_AFFINE, one.known)
    spectral = partial(one.selected, lambda layer, _: ds.spectral(layer))
    for words, way in (("DALR", dalr), ("spectral pruning", spectral)):
        for share in scale.budgets:
            small = ds.compress(whole, way(share), example=structure)
            profile = ds.profile(whole, small, pictures, batch_sizes=[BATCH]).whole[0]
            if (words, share) == ("DALR", scale.budgets[0]):
                yield _row("uncompressed", whole, profile.macs_before, "1")
            ratio = f"{profile.ratio:.2f} ({profile.ratio_low:.2f} to {profile.ratio_high:.2f})"
            yield _row(f"{words}, {share:.0%}", small, profile.macs_after, ratio)


def _row(words: str, network: nn.Module, macs: int, ratio: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        saved = ds.save(network, Path(folder) / "network")
        size = sum(file.stat().st_size for file in Path(saved).rglob("*.safetensors"))
    return f"| {words} | {parameter_count(network):,} | {size / 1e6:.1f} | {macs / BATCH / 1e6:.1f} | {ratio} |"


def main() -> None:
    """Print the table."""
    for line in rows(Scale()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
