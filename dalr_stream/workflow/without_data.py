"""What a run would cost, from its run file or a configuration alone: no weights, no data, no memory.

The network is built on the meta device, where tensors have shapes and no numbers; a batch is what the user states of
it. A `config.json` of transformers counts as the run file that `init --from-transformers` would write for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from dalr_stream.engine.blocks.estimate import estimate_blocks
from dalr_stream.engine.estimate import estimate as plan_of
from dalr_stream.engine.planning.duration import duration_of
from dalr_stream.engine.planning.estimate import StatedBatches, estimate_of, shapes_explained
from dalr_stream.engine.planning.rates import Rates
from dalr_stream.engine.planning.records import Estimate
from dalr_stream.errors import ConfigError, DalrStreamError
from dalr_stream.numerics.methods import Family
from dalr_stream.workflow.results.tables import cost_table
from dalr_stream.workflow.results.time_table import time_table
from dalr_stream.workflow.run_time import shared_out
from dalr_stream.workflow.runfile.config import RunConfig, load_config, parse_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.starter import run_file_of
from dalr_stream.workflow.starter.model_folder import without_weights

CONFIG = "config.json"
_OPTIONS = "--samples N with --shape 64,3,224,224, say, or --tokens 8,2048"


@dataclass(frozen=True, slots=True)
class StatedData:
    """What the user says of data that nobody looks at."""

    samples: int
    """Of each domain."""
    shape: tuple[int, ...]
    """Of a batch."""
    tokens: bool
    """Whether a batch holds token ids, or numbers."""

    @classmethod
    def of(cls, samples: int | None, shape: str | None, tokens: str | None) -> StatedData | None:
        """Read the options; None where nothing is stated. Raises ConfigError where a part is missing or is no shape."""
        given = [text for text in (shape, tokens) if text is not None]
        if samples is None and not given:
            return None
        if samples is None or len(given) != 1:
            raise ConfigError(f"estimate: without data, state all of a batch and how many samples: {_OPTIONS}")
        try:
            sizes = tuple(int(size) for size in given[0].split(","))
        except ValueError:
            sizes = ()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ConfigError(f"estimate: a batch's shape begins with its samples, as in {_OPTIONS}; got '{given[0]}'")
        return cls(samples, sizes, tokens is not None)

    @property
    def batches(self) -> StatedBatches:
        """Batches on the meta device."""
        kind = torch.int64 if self.tokens else torch.get_default_dtype()
        return StatedBatches(torch.empty(self.shape, dtype=kind, device="meta"), self.samples)


@dataclass(frozen=True, slots=True)
class CostWithoutData:
    """What capturing and accumulating take; of solving nothing is known without data."""

    estimate: Estimate
    notes: tuple[str, ...]

    @property
    def tables(self) -> list[Table]:
        """Layer by layer."""
        return [cost_table(self.estimate.plan), time_table(self.estimate)]

    @property
    def lines(self) -> list[str]:
        """What tables do not say."""
        return [*self.estimate.lines, *self.notes]

    @property
    def refusals(self) -> tuple[Callable[[], None], ...]:
        """What refuses a run that would not fit in memory."""
        return (self.estimate.plan.require,)

    def facts(self) -> dict[str, Any]:
        """Return the same as plain values, sizes in bytes."""
        plan = self.estimate.plan
        return {
            "layers": [asdict(layer) for layer in plan.layers],
            "disk_bytes": plan.disk_bytes,
            "peak_bytes": {"accumulate": plan.peak_bytes},
            "time": self.estimate.facts(),
            "notes": self.lines,
        }


def cost_without_data(
    file: Path, overrides: Sequence[str], stated: StatedData, *, ranks: int = 1, rates: Rates | None = None
) -> CostWithoutData:
    """Return what a run would take on data as stated; `file` is a run file, or a `config.json` of transformers.

    Raises ConfigError for a network that cannot be built without memory.
    """
    project, network = _opened(file, overrides)
    config, folding = project.config, project.widest_folding
    loaders = dict.fromkeys(config.domains, stated.batches)
    rule = replace(project.code.rows, mask=None, prove=False)
    with shapes_explained(network):
        layers = project.watched_in(network)
        direct = not config.capture.keep_activations
        if config.network.blocks:
            blocks = config.network.blocks
            plan = estimate_blocks(network, loaders, layers, folding, blocks=blocks, rows=rule, ranks=ranks)
        else:
            plan = plan_of(network, loaders, layers, folding, rows=rule, direct=direct, ranks=ranks)
        took = duration_of(network, loaders, layers, folding, plan, rows=rule, rates=rates)
    if config.capture.mask is not None:
        plan = replace(plan, varying=frozenset(layer.stream for layer in layers))
    foldings = {domain: project.folding(domain) for domain in config.domains}
    found = estimate_of(plan, layers, foldings, took, store=project.store, ranks=ranks, rates=rates)
    shared = (shared_out(plan, folding, ranks, took),) if ranks > 1 else ()
    return CostWithoutData(found, (*shared, "not in it: solving, and what selections of nodes need to be watched"))


def _opened(file: Path, overrides: Sequence[str]) -> tuple[Project, nn.Module]:
    """Return the project, of low-rank methods alone, and its network without numbers."""
    folder = file if file.is_dir() else file.parent
    if file.name == CONFIG or (file / CONFIG).is_file():
        config = parse_config(run_file_of(folder), file, overrides)
        return Project(_low_rank(config), folder.resolve()), without_weights(folder)[2].eval()
    config = load_config(file, overrides)
    project = Project(_low_rank(config), folder.resolve())
    try:
        with torch.device("meta"):
            return project, project.code.build().eval()
    except Exception as error:  # whatever a network's own code raises
        if isinstance(error, DalrStreamError):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"network.build: '{config.network.build}' cannot be built without numbers ({type(error).__name__}: "
            f"{reason}): let it build the network alone, with the weights in network.weights; of transformers, name "
            "its config.json in place of the run file"
        ) from error


def _low_rank(config: RunConfig) -> RunConfig:
    """Return a configuration without selections: only numbers show which layers read whose nodes."""
    methods = tuple(method for method in config.solve.methods if method.family is Family.LOW_RANK)
    return config.model_copy(update={"solve": config.solve.model_copy(update={"methods": methods})})


def parse_rates(given: Sequence[str]) -> Rates:
    """Return the rates of `name=number`; raises ConfigError for another name, and for what is no number above 0."""
    known: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in Rates.names():
            raise ConfigError(f"--rate: must name one of {', '.join(Rates.names())}, as in forward=4e14, got '{text}'")
        try:
            known[name] = float(number)
        except ValueError:
            raise ConfigError(f"--rate: must read like forward=4e14, got '{text}'") from None
    return Rates(**known)
