"""A run file resolved: its folders, its network, its layers, and what they will cost.

Nothing here runs a step. The network is built and loaded when it is first asked for, and not at all by the steps that
need no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from dalr_stream.engine.blocks.estimate import estimate_blocks
from dalr_stream.engine.capture import network_record
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, StoreNotFoundError
from dalr_stream.network.blocks.opened import open_network
from dalr_stream.network.capture.batches import call
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.network.layers.spec import LayerSpec, unsupported_layers
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.network.saved.pretrained import load_pretrained
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.recorded import Groups, RecordedGroups
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.cluster import Cluster, open_cluster
from dalr_stream.streaming.folding import Folding, Threads, Workers
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.finetune_section import FinetuneSection
from dalr_stream.workflow.runfile.labelled_sections import EvaluateSection, LabelledSection
from dalr_stream.workflow.runfile.store_place import store_place
from dalr_stream.workflow.runfile.user_code import UserCode
from dalr_stream.workflow.runfile.watched import layers_to_watch

CACHE_SHARE = 4
"""Of a memory limit, a fourth is the most that scoring keeps of what comes before a layer; likewise of solutions."""
SOLUTIONS_BYTES = 256 * 2**20
"""Kept of solutions that are cut to many sizes: reading one of 10 MiB again takes some 20 ms."""


class Project:
    """One run file and its output folder."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """`folder` is the run file's."""
        self.config = config
        self.folder = folder
        self.output = (folder / config.run.output).resolve()
        if self.output.is_file():
            raise ConfigError(f"run.output: '{self.output}' is a file: name a folder")
        self.store = store_place(config.run, folder, self.output)
        self.weights = self.output / "network.safetensors"
        self.weights_record = self.output / "network.json"
        self.compressed = self.output / "compressed"
        self.compression = self.output / "compression.json"
        self.swept = self.output / "layers.json"
        self.finetuned = self.output / "finetuned"
        self.finetuning = self.output / "finetuning.json"
        self.unfinished = self.output / "unfinished"
        self.measuring = self.output / "measuring"
        self.sequence = self.output / "sequence"
        self.pass_moments = self.output / "passes"
        self.cross = self.output / "cross.zarr"
        self.evaluation = self.output / "evaluation.json"
        self.stability = self.output / "stability.json"
        self.report_folder = self.output / "report"
        self.report_record = self.output / "report.json"
        self.code = UserCode(config, folder)
        self._watched_in: WeakKeyDictionary[nn.Module, tuple[LayerSpec, ...]] = WeakKeyDictionary()

    @property
    def stores(self) -> list[Place]:
        """The run's store, that of cross moments, and those that the passes of `sequential` have left."""
        kept = sorted(self.pass_moments.iterdir()) if self.pass_moments.is_dir() else []
        return [self.store, *(path for path in (self.cross, *kept) if (path / MANIFEST).is_file())]

    @cached_property
    def network(self) -> nn.Module:
        """The trained, uncompressed network, in eval mode."""
        section, weights = self.config.network, self._weights_file
        if section.has_own_weights:
            return self._built_with_weights()
        if section.weights is None and not weights.exists():
            raise StoreNotFoundError(f"there are no weights at '{weights}': run train first")
        model = self.code.placed()
        load_pretrained(model, weights)
        return model.eval()

    @property
    def _weights_file(self) -> Path:
        return self.weights if self.config.network.weights is None else self.folder / self.config.network.weights

    def _built_with_weights(self) -> nn.Module:
        """Return what the factory gives; raises ConfigError where it gives other weights the next time."""
        model = self.code.placed().eval()
        if not self.store.exists() and fingerprint(self.code.placed().eval()) != fingerprint(model):
            raise ConfigError(
                f"network.build: '{self.config.network.build}' gives other weights each time it is called, so they are "
                "not those of one network: name a file as 'weights', or a function that trains as 'train'"
            )
        return model

    @cached_property
    def recorded(self) -> nn.Module:
        """The network as its layers are recorded: block by block from disk, where the run file says so."""
        section, weights = self.config.network, self._weights_file
        if not section.blocks or section.has_own_weights or not weights.exists():
            return self.network
        return open_network(self.code.build, weights, device=section.device or "cpu")

    @cached_property
    def watched(self) -> tuple[LayerSpec, ...]:
        """The layers to compress, those whose inputs decide which nodes to keep, outputs and gradients asked for."""
        return self.watched_in(self.recorded)

    def watched_in(self, network: nn.Module) -> tuple[LayerSpec, ...]:
        """Return the same of a network of this structure, trained or not; found once of each."""
        if network not in self._watched_in:
            self._watched_in[network] = self._find_watched(network)
        return self._watched_in[network]

    def _find_watched(self, network: nn.Module) -> tuple[LayerSpec, ...]:
        known = self.structure if network is self.__dict__.get("network") else None
        return layers_to_watch(
            network, self.config, lambda: known or self._structure_of(network), lambda: self.code.first_batch
        )

    def prospect(self, network: nn.Module) -> StoreView:
        """Return the store that capturing such a network would make: its layers and their readers, nothing else."""
        return StoreView(self.store, Manifest(network_record(network, self.watched_in(network))))

    def stand_in(self) -> nn.Module:
        """Return the network with its weights where there are some, untrained otherwise: the cost is the same."""
        named = self.config.network.has_own_weights or self.config.network.weights is not None
        return self.network if named or self.weights.exists() else self.code.placed().eval()

    def recorded_stand_in(self) -> nn.Module:
        """Return the same for what only looks at layers and their rows: block by block, its weights stay on disk."""
        return self.recorded if self.config.network.blocks and self.config.network.weights else self.stand_in()

    @property
    def unsupported_layers(self) -> tuple[str, ...]:
        """What the patterns match that cannot be compressed, in words."""
        return unsupported_layers(self.recorded, self.config.network.layers)

    @cached_property
    def structure(self) -> Structure | None:
        """Which layers of the network are coupled, as the first samples show; None where no method needs to know."""
        return self._structure_of(self.network) if self.config.selects or self.config.narrows else None

    def _structure_of(self, network: nn.Module) -> Structure:
        place = f"domain '{next(iter(self.config.domains))}', batch 0"
        return Structure.of(network, self.code.first_batch, place=place)

    @property
    def groups(self) -> Groups | None:
        """The same, of a network that goes block by block as it was found within each block."""
        if weights_elsewhere(self.recorded) is None:
            return self.structure
        return RecordedGroups(self.watched) if self.config.selects else None

    @cached_property
    def positions(self) -> dict[str, float]:
        """How often a sample takes each layer's multiply-adds, on the first batch: every position of it."""
        with watched_calls(self.recorded) as calls, without_gradients():
            call(self.recorded, self.code.first_batch)
        layers = {name: matrix_of(self.recorded.get_submodule(name)).numel() for name in calls.macs}
        return {name: calls.macs[name] / weights / calls.samples for name, weights in layers.items()}

    @property
    def network_record(self) -> NetworkRecord:
        """What identifies the network, its watched layers and who reads their nodes."""
        return network_record(self.recorded, self.watched)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers to compress, as the store knows them: no network is needed."""
        return self.layers_in(StoreView.open(self.store))

    def layers_in(self, store: StoreView) -> tuple[str, ...]:
        """Return the same of a store."""
        known = store.layers
        matched = {name for pattern in self.config.network.layers for name in match_names(pattern, known)}
        return tuple(name for name in known if name in matched)

    def methods(self, store: StoreView, layer: str) -> tuple[Method, ...]:
        """Return the methods that apply to a layer: all asked for, less selections and heads that there cannot be."""
        narrows = store.record(layer).heads is not None
        applies = {Family.LOW_RANK: True, Family.SELECTION: bool(store.readers(layer)), Family.HEADS: narrows}
        return tuple(method for method in self.config.solve.methods if applies[method.family])

    def wanted(self, store: StoreView) -> list[tuple[str, Method]]:
        """Return every layer with every method that applies to it."""
        return [(layer, method) for layer in self.layers for method in self.methods(store, layer)]

    @property
    def evaluate_section(self) -> EvaluateSection:
        """The [evaluate] section; raises ConfigError where the run file has none."""
        if self.config.evaluate is None:
            raise ConfigError("evaluate: the run file has no [evaluate] section that names the test split")
        return self.config.evaluate

    @property
    def finetune_section(self) -> FinetuneSection:
        """The [finetune] section; raises ConfigError where the run file has none."""
        if self.config.finetune is None:
            raise ConfigError("finetune: the run file has no [finetune] section that names batches")
        return self.config.finetune

    @property
    def saved(self) -> list[Path]:
        """The folders of the networks that the run file asks to be saved."""
        wanted = {self.compressed: self.config.compress.wanted, self.finetuned: self.config.finetune is not None}
        return [folder for folder, asked in wanted.items() if asked]

    def estimate(self, untrained: nn.Module | None = None, *, ranks: int = 1) -> MemoryPlan:
        """Return what capturing and accumulating will cost, and each of `ranks` processes; any weights will do."""
        network, blocks = self.recorded if untrained is None else untrained, self.config.network.blocks
        watched, folding = self.watched_in(network), self.widest_folding
        with self.code.importing():
            loaders = {domain: self.code.batches(domain) for domain in self.config.domains}
            if blocks:
                keep = self.config.accumulate.keep_moments
                return estimate_blocks(
                    network,
                    loaders,
                    watched,
                    folding,
                    blocks=blocks,
                    rows=self.code.rows,
                    keep_moments=keep,
                    ranks=ranks,
                )
            direct = not self.config.capture.keep_activations
            return estimate(network, loaders, watched, folding, rows=self.code.rows, direct=direct, ranks=ranks)

    def cache_of(self, section: LabelledSection) -> int:
        """Return what scoring may keep of what comes before a layer: of a memory limit a fourth at most."""
        limit = self.config.accumulate.memory_limit_bytes
        return section.cache_bytes if limit is None else min(section.cache_bytes, limit // CACHE_SHARE)

    @property
    def room_for_solutions(self) -> int:
        """What may be kept of solutions that are cut to one size after another: of a limit a fourth at most."""
        limit = self.config.accumulate.memory_limit_bytes
        return SOLUTIONS_BYTES if limit is None else min(SOLUTIONS_BYTES, limit // CACHE_SHARE)

    @property
    def widest_folding(self) -> Folding:
        """How the domain's rows become moments that keeps most records: for plans."""
        return max(map(self.folding, self.config.domains), key=lambda one: (one.shards, one.holdout.share))

    def folding(self, domain: str, workers: Workers | None = None) -> Folding:
        """Return how a domain's rows become moments; on this process's threads where no workers are named."""
        section = self.config.accumulate
        threads = Threads() if section.threads is None else Threads(section.threads)
        return Folding(
            self.config.holdout(domain),
            workers or threads,
            section.memory_limit_bytes,
            precision=section.precision,
            device=section.device,
            shards=self.config.shards(domain),
            any_blas=section.any_blas,
            segment_batches=section.segment_batches or 0,
        )

    @contextmanager
    def cluster(self) -> Iterator[Cluster | None]:
        """Open the cluster that the run file names, or give None where it names none."""
        section = self.config.accumulate
        if section.scheduler is None and section.workers is None:
            yield None
            return
        with open_cluster(scheduler=section.scheduler, workers=section.workers) as cluster:
            yield cluster
