"""The sections of a run file, each by itself: their keys, their defaults, and what contradicts itself within one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.runfile.ridges import ABSOLUTE, RidgeFrom, ridge_or
from dalr_stream.workflow.runfile.values import (
    DEVICE,
    FOLD_DEVICE,
    Bytes,
    Factory,
    Masks,
    Options,
    Positive,
    Share,
    parse_bytes,
)


class Section(BaseModel):
    """Part of a run file; unknown keys are refused; so are true and false for a key that is not a switch."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and not _may_be_bool(field.annotation):
                raise ValueError(f"'{key}' is not a switch, got {str(value).lower()}")
        return values


def _may_be_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_may_be_bool, get_args(annotation)))


class RunSection(Section):
    """What the run is called and where its artefacts go."""

    name: str = Field(min_length=1)
    """Title of the report."""
    output: Path = Path("runs")
    """Folder of the artefacts, relative to the run file."""
    store: str | None = None
    """Where rows, moments and solutions lie: a folder, relative to the run file, or a bucket, `s3://bucket/birds.zarr`,
    `gs://`, `az://`; by default `store.zarr` in `output`. Credentials are those of the environment."""
    seed: int = Field(default=0, ge=0)
    """Handed to the training and to every data factory, and to the choice of held-out samples."""
    import_from: tuple[Path, ...] = ()
    """Folders in which Python is looked for after the run file's own, relative to it."""
    caveats: tuple[str, ...] = ()
    """What the run does not show, in the author's words; printed in the report."""


class NetworkSection(Section):
    """Where the network comes from, and which of its layers are compressed."""

    build: Factory
    """`build(**options) -> nn.Module`; with its weights, where there is neither `weights` nor `train`."""
    options: Options = {}
    """Keyword arguments of `build`."""
    weights: Path | None = None
    """A safetensors file, or a folder that `save_pretrained` of transformers wrote; relative to the run file."""
    train: Factory | None = None
    """`train(model, *, seed, report, **train_options)`, where there are no weights yet."""
    start: Path | None = None
    """A file that training starts from, such as published weights, relative to the run file: `train(start=path)`."""
    train_options: Options = {}
    """More keyword arguments of `train`."""
    device: str | None = Field(default=None, pattern=DEVICE)
    """Where forward passes run, `cpu`, `cuda` or `cuda:1`: in capture, evaluation and fine-tuning. By default where
    `build` puts the network. `train` gets the network as it is built and may put it where it likes."""
    layers: tuple[str, ...] = Field(min_length=1)
    """Patterns: a name, a glob, or `re:...`."""
    blocks: bool | str | tuple[str, ...] = False
    """Accumulate block by block, what each block gives in the store until the next one has read it: `true` finds the
    blocks, or the names of the lists of modules (`nn.ModuleList`, `nn.Sequential`) that they are members of. With
    `weights` one block is in memory at a time. Needs capture.keep_activations = false."""
    outputs: tuple[str, ...] = ()
    """Patterns of layers whose outputs are watched as well: their moments are kept as those of `name@outputs`."""
    gradients: tuple[str, ...] = ()
    """Patterns of layers of whose outputs the gradients are watched as well, as `name@gradients`: what the weighted
    methods need; with one of these in `solve.methods` all that it needs. [gradients] says which gradients. Each batch
    then takes a backward pass too."""

    @property
    def has_own_weights(self) -> bool:
        """Whether `build` returns the network with its weights."""
        return self.weights is None and self.train is None

    @model_validator(mode="after")
    def _one_source(self) -> NetworkSection:
        if self.weights is not None and self.train is not None:
            raise ValueError("takes one of 'weights' (a safetensors file) and 'train' (module:function), not both")
        if self.start is not None and self.train is None:
            raise ValueError("'start' is what 'train' starts from: name the function, or give the file as 'weights'")
        return self


class DataSection(Section):
    """A loader: `batches(*, seed, **options)` gives a re-iterable of batches. Loaders never download by themselves."""

    batches: Factory
    """`batches(*, seed, **options)` returns a re-iterable of batches with a length."""
    options: Options = {}
    """Its keyword arguments, beside the seed."""


class CaptureSection(Section):
    """Which rows of the layers are recorded, and whether they are kept."""

    keep_activations: bool = True
    """Keep the rows on disk, where later commands accumulate them again; or fold them as they come and keep none."""
    mask: Masks | None = None
    """Which positions count: a key of the batch, or `module:function`, a function of the batch; (N, T). A table gives
    each pattern of layers a mask of its own; layers that none matches have no mask."""
    most_per_sample: Positive | None = None
    """At most this many rows of each sample in each layer, drawn by `run.seed` from those that count."""
    most_patches: Positive = 16
    """The same for what convolutions read."""
    prove: bool = True
    """Prove on the first batch whose rows are whose, in three forward passes more; false takes rows as they come."""

    @property
    def mask_functions(self) -> tuple[str, ...]:
        """The masks that are `module:function`."""
        masks = self.mask.values() if isinstance(self.mask, dict) else (self.mask or [],)
        names = (name for mask in masks for name in (mask if isinstance(mask, list) else [mask]))
        return tuple(name for name in names if ":" in name)


class AccumulateSection(Section):
    """How rows become moments, and what folds them."""

    heldout_share: Share = 0.1
    """Share of the target's samples held out, where no domain is named for it (`solve.heldout`)."""
    shards: Positive = 1
    """Keep the target's training samples, assigned at random, as this many records: error bars come from them."""
    memory_limit: Bytes | None = None
    """Memory limit for every step, e.g. `8GiB`: folding takes more passes and scoring keeps less where it is short.
    What does not fit is refused before anything is recorded, with what would take less."""
    threads: Positive | None = None
    """Threads that fold in this process; all cores by default."""
    workers: Positive | None = None
    """Fold in this many worker processes of this machine instead."""
    scheduler: str | None = None
    """Fold on the workers of this dask.distributed scheduler instead, e.g. `tcp://host:8786`."""
    any_blas: bool = False
    """Accept workers whose BLAS is another build, or chose another kernel for another CPU, and checkpoints that such a
    one left. The moments then say `any` for their BLAS: bits may depend on who folded what. By default refused."""
    segment_batches: Positive | None = None
    """Cut tiles at every so many batches, and add up what lies between in a fixed tree, so that each rank of a job that
    torchrun starts folds its own batches, to the bits of one process; without it, ranks share the sums of each layer.
    Where no activations are kept; a segment should fill several tiles."""
    precision: Precision = Precision.DOUBLE
    """Of products: `single` is the fast mode, float32 products and float64 sums."""
    device: str | None = Field(default=None, pattern=FOLD_DEVICE)
    """Where torch folds, `cuda` or `cuda:1`, whatever the network runs on; or `cupy`, where CuPy folds what lies in the
    store. By default numpy folds."""

    keep_moments: bool = True
    """Keep the moments of all layers. Of a network that goes block by block they need not be: with false each block is
    solved, compressed and written in one sweep, and its moments are removed; the report's curves stay."""
    cross: str | None = None
    """Folder of a network that was compressed from this one and saved: of the layers that it still has, also keep the
    cross moments of what they read there and give here, in `cross.zarr`. The order `sequential` keeps its own."""

    @model_validator(mode="after")
    def _one_place(self) -> AccumulateSection:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("needs one of 'workers' (processes here) and 'scheduler' (a cluster's address)")
        return self

    @property
    def memory_limit_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit)


class SolveSection(Section):
    """What is solved from the moments."""

    methods: tuple[Method, ...] = tuple(m for m in Method if not m.weighted and m.family is not Family.HEADS)
    """What is solved for each layer; a selection is left out where nodes of a layer cannot go. The weighted methods
    need `network.gradients`, MoMaSP needs `source` and is not among the default without one. `heads` is for the output
    layers of attentions, which are looked for among the layers where it is named."""
    target: str = "target"
    """The domain whose moments decide."""
    source: str | None = None
    """The domain MoMaSP compares with."""
    heldout: str | None = None
    """A domain that is held out: its rows only measure the error. By default the held-out share of the target."""
    ridge: Annotated[
        float | RidgeFrom,
        ridge_or(*RidgeFrom),
        Field(json_schema_extra={"in_words": 'number, "heldout", "shards" or "shrinkage"'}),
    ] = 1e-3
    """Relative to the mean diagonal of the matrix being solved, to which no feature adds more than 1,000 times the
    median. Or `heldout` or `shards`: for each layer and method the ridge of a grid, 1e-6 to 10, with the least error on
    held-out rows, or on shards left out one by one. Or `shrinkage`: the one that the moments and the number of samples
    decide (oracle approximating shrinkage)."""
    gradient_ridge: Annotated[
        float | RidgeFrom,
        ridge_or(RidgeFrom.SHRINKAGE),
        Field(json_schema_extra={"in_words": 'number or "shrinkage"'}),
    ] = 1e-2
    """Of the second moment of gradients, for the weighted methods, relative to its mean diagonal: what an error counts
    in directions in which no gradient was seen."""
    ridge_absolute: Annotated[
        float | dict[Method, float] | None,
        ABSOLUTE,
        Field(json_schema_extra={"in_words": "number, or a table of numbers by method"}),
    ] = None
    """On unnormalised sums, as in the authors' code; replaces `ridge`. As a table, `{ dalr_published = 1000.0 }`, it
    does so for the methods that it names."""
    strength: float = Field(default=1.0, ge=0.0)
    """Of MoMaSP's regulariser."""
    restore_ridge: float = Field(default=1e-3, ge=0.0)
    """Of the matrix that puts pruned nodes back, relative to the mean diagonal of Sigma. 0 is the papers' form, which
    fits noise when about as many nodes are kept as there are samples."""

    @model_validator(mode="before")
    @classmethod
    def _momasp_where_there_is_a_source(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "methods" in values or values.get("source") is not None:
            return values
        default = cls.model_fields["methods"].default
        return {**values, "methods": tuple(method for method in default if not method.needs_source)}

    @model_validator(mode="after")
    def _one_ridge(self) -> SolveSection:
        asks, for_all = isinstance(self.ridge, RidgeFrom), isinstance(self.ridge_absolute, float)
        if asks and for_all:
            raise ValueError(f"'ridge_absolute' replaces 'ridge', which asks for a choice ('{self.ridge}'): give one")
        return self

    def ridge_for(self, method: Method) -> Ridge | RidgeFrom:
        """Return the ridge as the solvers take it, or what is to choose it."""
        own = self.ridge_absolute
        absolute = own.get(method) if isinstance(own, dict) else own
        if absolute is not None:
            return Ridge.absolute(absolute)
        if isinstance(self.ridge, RidgeFrom) and self.ridge is not RidgeFrom.SHRINKAGE:
            return self.ridge
        return Ridge.of(self.ridge)

    @property
    def chooses_ridge(self) -> bool:
        """Tell whether rows choose the ridge of any method."""
        return any(isinstance(self.ridge_for(method), RidgeFrom) for method in self.methods if method.takes_ridge)

    @property
    def gradient_ridge_rule(self) -> Ridge:
        """The ridge of the gradients' second moment."""
        return Ridge.of(self.gradient_ridge)


class ReportSection(Section):
    """What the report shows beside what the run found."""

    published: Path | None = None
    """A TOML file of published numbers, shown under the run's own; relative to the run file. Those in
    `pipelines/vgg19/published` are examples."""
