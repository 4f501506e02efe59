"""The run file: TOML, validated whole before anything runs.

Unknown keys are errors that name the nearest known one; a value of the wrong kind is an error that names its key. The
resolved configuration, with every default filled in, travels in every artefact. A run file names Python only as
`module:function`, where the user wrote it; nothing else read from disk is ever executed.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.lowrank import Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.precision import Precision
from dalr_stream.workflow.compress_section import ChoiceSection, CompressSection, Positive, with_sizes

Factory = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Options = dict[str, Any]
DEVICE = r"^(cpu|cuda(:\d+)?)$"
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class RidgeFrom(StrEnum):
    """Which rows choose a ridge."""

    HELDOUT = "heldout"
    SHARDS = "shards"


def _ridge(value: Any) -> float | RidgeFrom:
    """Return a ridge, or what chooses it; one validator for both, so that a wrong value is one message."""
    if value in list(RidgeFrom):
        return RidgeFrom(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < math.inf:
        raise ValueError(f"must be a number >= 0, 'heldout' or 'shards', got {value!r}")
    return number


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class RunSection(_Section):
    """What the run is called and where its artefacts go."""

    name: str = Field(min_length=1)
    output: Path = Path("runs")
    """Folder of the artefacts, relative to the run file."""
    seed: int = Field(default=0, ge=0)
    """Handed to the training and to every data factory, and to the choice of held-out samples."""
    caveats: tuple[str, ...] = ()
    """What the run does not show, in the author's words; printed in the report."""


class NetworkSection(_Section):
    """Where the network comes from, and which of its layers are compressed."""

    build: Factory
    """`build(**options) -> nn.Module`."""
    options: Options = {}
    weights: Path | None = None
    """A safetensors file, or a folder that `save_pretrained` of transformers wrote; relative to the run file."""
    train: Factory | None = None
    """`train(model, *, seed, report, **train_options)`, where there are no weights yet."""
    start: Path | None = None
    """A file that training starts from, such as published weights, relative to the run file: `train(start=path)`."""
    train_options: Options = {}
    device: str | None = Field(default=None, pattern=DEVICE)
    """Where forward passes run, `cpu`, `cuda` or `cuda:1`: in capture, evaluation and fine-tuning. By default where
    `build` puts the network. `train` gets the network as it is built and may put it where it likes."""
    layers: tuple[str, ...] = Field(min_length=1)
    """Patterns: a name, a glob, or `re:...`."""
    outputs: tuple[str, ...] = ()
    """Patterns of layers whose outputs are watched as well: their moments are kept as those of `name@outputs`."""

    @model_validator(mode="after")
    def _one_source(self) -> NetworkSection:
        if (self.weights is None) == (self.train is None):
            raise ValueError("needs exactly one of 'weights' (a safetensors file) and 'train' (module:function)")
        if self.start is not None and self.train is None:
            raise ValueError("'start' is what 'train' starts from: name the function, or give the file as 'weights'")
        return self


class DataSection(_Section):
    """A loader: `batches(*, seed, **options)` gives a re-iterable of batches. Loaders never download by themselves."""

    batches: Factory
    options: Options = {}


class CaptureSection(_Section):
    """How activations become moments."""

    direct: bool = False
    """Fold activations as they come and keep none on disk."""
    heldout_share: Share = 0.1
    """Share of the samples kept apart as held-out, where no domain is named for it."""
    threads: Positive | None = None
    """Threads that fold in this process; all cores by default."""
    workers: Positive | None = None
    """Fold in so many worker processes of this machine instead."""
    scheduler: str | None = None
    """Fold on the workers of this dask.distributed scheduler instead, e.g. `tcp://host:8786`."""
    mask: str | None = Field(default=None, min_length=1)
    """Which positions count: a key of the batch, or `module:function`, a function of the batch; (N, T)."""
    most_per_sample: Positive | None = None
    """At most so many rows of each sample in each layer, chosen by `run.seed` among those that count."""
    most_patches: Positive = 16
    """The same for what convolutions read."""
    memory_limit: str | None = None
    """What folding may hold, e.g. `8GiB`: more passes where it is short, refused where it cannot be kept."""
    shards: Positive = 1
    """Keep the target's training samples, dealt at random, as so many records: what error bars are computed from."""
    precision: Precision = Precision.DOUBLE
    """Of products: `single` is the fast mode, float32 products and float64 sums."""
    device: str | None = Field(default=None, pattern=DEVICE)
    """Where torch folds, `cuda` or `cuda:1`, whatever the network runs on; by default numpy folds."""

    @model_validator(mode="after")
    def _one_place(self) -> CaptureSection:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("needs one of 'workers' (processes here) and 'scheduler' (a cluster's address)")
        if self.direct and (self.workers or self.scheduler):
            raise ValueError("'direct' folds beside the network, on this process's threads: leave out the cluster")
        return self

    @property
    def memory_limit_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit)


class SolveSection(_Section):
    """What is solved from the moments."""

    methods: tuple[Method, ...] = tuple(Method)
    target: str = "target"
    """The domain whose moments decide."""
    source: str | None = None
    """The domain MoMaSP compares with."""
    heldout: str | None = None
    """A domain whose rows measure the error and decide nothing; by default the held-out share of the target."""
    ridge: Annotated[float | RidgeFrom, BeforeValidator(_ridge)] = 1e-3
    """Relative to the mean diagonal of the matrix being solved; or `heldout` or `shards`: for each layer and method the
    one of `numerics.ridge_choice.GRID` with the least error on held-out rows, or on shards left out one by one."""
    ridge_absolute: float | None = Field(default=None, ge=0.0)
    """On unnormalised sums, as in the authors' code; replaces `ridge`."""
    strength: float = Field(default=1.0, ge=0.0)
    """Of MoMaSP's regulariser."""
    restore_ridge: float = Field(default=1e-3, ge=0.0)
    """Of the matrix that puts pruned nodes back, relative to the mean diagonal of Sigma. 0 is the papers' form, which
    fits noise when about as many nodes are kept as there are samples."""

    @model_validator(mode="after")
    def _one_ridge(self) -> SolveSection:
        if isinstance(self.ridge, RidgeFrom) and self.ridge_absolute is not None:
            raise ValueError(f"'ridge_absolute' replaces 'ridge', which asks for a choice ('{self.ridge}'): give one")
        return self

    @property
    def ridge_rule(self) -> Ridge | RidgeFrom:
        """The ridge as the solvers take it, or what is to choose it."""
        if self.ridge_absolute is not None:
            return Ridge.absolute(self.ridge_absolute)
        return self.ridge if isinstance(self.ridge, RidgeFrom) else Ridge.relative(self.ridge)


class FinetuneSection(DataSection):
    """Labelled batches, never the test split, and how the compressed network is fine-tuned on them.

    The setting is MoMaSP's; `network.finetune.FineTuning` says what each key does. The batch size is the loader's.
    """

    epochs: Positive = 10
    rate: float = Field(default=1e-4, gt=0.0, allow_inf_nan=False)
    weight_decay: float = Field(default=5e-4, ge=0.0, allow_inf_nan=False)
    layers: tuple[str, ...] = ()
    """Patterns of what is trained, by the original layers' names; none: every fully connected layer."""
    loss: Factory | Literal["cross_entropy"] = "cross_entropy"
    """`loss(outputs, labels)`: the mean over a batch."""
    dropout: bool = False


class LabelledSection(DataSection):
    """Labelled batches, how a network is scored on them, and the sizes to try."""

    metric: Factory | Literal["accuracy"] = "accuracy"
    """`metric(model, batches) -> float` in 0..1; all it may do with the model is to call it on one batch at a time."""
    ranks: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    """Of each layer by itself; none where only the networks that the run saves are of interest."""
    cache: str = "256MiB"
    """What may be kept of the values that enter the compressed layers, of each loader's batches, instead of loading and
    computing them for every network."""

    @model_validator(mode="after")
    def _cache_can_be_read(self) -> LabelledSection:
        parse_bytes(self.cache)
        return self

    @property
    def cache_bytes(self) -> int:
        """The same in bytes."""
        return parse_bytes(self.cache)

    @property
    def metric_words(self) -> str:
        """The metric's name in print: `my_metrics:next_token_accuracy` is `next token accuracy`."""
        return self.metric.rpartition(":")[2].replace("_", " ")


class EvaluateSection(LabelledSection):
    """The labelled test split, and the sizes to try on it."""

    drop: float = Field(default=0.01, gt=0.0, lt=1.0)
    """The loss of accuracy that the headline allows."""
    finetune: bool = False
    """Whether each network is also fine-tuned, as [finetune] says, and scored again."""


class ReportSection(_Section):
    """What the report shows beside what the run found."""

    published: Path | None = None
    """Published numbers, a TOML file as `workflow.published` reads it, relative to the run file."""


class RunConfig(_Section):
    """A whole run file."""

    run: RunSection
    network: NetworkSection
    domains: dict[str, DataSection] = Field(min_length=1)
    capture: CaptureSection = CaptureSection()
    solve: SolveSection = SolveSection()
    compress: CompressSection = CompressSection()
    finetune: FinetuneSection | None = None
    """Fine-tuning of the compressed network; none where it is left out."""
    evaluate: EvaluateSection | None = None
    validation: LabelledSection | None = None
    """What the joint search scores networks on; never the test split."""
    report: ReportSection = ReportSection()

    @property
    def selects(self) -> bool:
        """Whether any of the methods is a selection: those need what the layers' readers read."""
        return any(method.family is Family.SELECTION for method in self.solve.methods)

    @property
    def compress_method(self) -> Method:
        """The method of a rule for all layers."""
        solved = self.solve.methods
        default = Method.DALR_ANCHORED_AFFINE if Method.DALR_ANCHORED_AFFINE in solved else solved[0]
        return self.compress.method or default

    @model_validator(mode="after")
    def _method_is_solved(self) -> RunConfig:
        if self.compress.rule and self.compress_method not in self.solve.methods:
            raise ValueError(
                f"compress.method: '{self.compress_method.value}' is not in solve.methods: add it, or choose another"
            )
        return self

    @model_validator(mode="after")
    def _search_has_batches_of_its_own(self) -> RunConfig:
        found, test = self.validation, self.evaluate
        if self.compress.max_drop is not None and found is None:
            raise ValueError(
                "compress.max_drop: the search scores networks on labelled batches that are not the test split: add a "
                '[validation] section that names them, batches = "module:function"'
            )
        if found and test and (found.batches, found.options) == (test.batches, test.options):
            raise ValueError(
                f"validation.batches: '{found.batches}' is the test split of [evaluate], and sizes would be chosen on "
                "the data that judges them: name other labelled batches"
            )
        return self

    @model_validator(mode="after")
    def _fine_tuning_has_a_network_and_batches(self) -> RunConfig:
        found, test = self.finetune, self.evaluate
        if test and test.finetune and found is None:
            raise ValueError(
                "evaluate.finetune: networks are fine-tuned on labelled batches that are not the test split: add a "
                '[finetune] section that names them, batches = "module:function"'
            )
        if found and not self.compress.wanted:
            raise ValueError(
                "finetune: fine-tunes the compressed network, and [compress] asks for none: name layers or a rule there"
            )
        if found and test and (found.batches, found.options) == (test.batches, test.options):
            raise ValueError(
                f"finetune.batches: '{found.batches}' is the test split of [evaluate], and the network would learn the "
                "data that judges it: name other labelled batches"
            )
        return self

    @model_validator(mode="after")
    def _domains_exist(self) -> RunConfig:
        for key in ("target", "source", "heldout"):
            name = getattr(self.solve, key)
            if name is not None and name not in self.domains:
                known = ", ".join(f"'{domain}'" for domain in self.domains)
                raise ValueError(f"solve.{key}: there is no [domains.{name}]; there is {known}")
        if self.solve.source is None and {Method.MOMASP_NODE, Method.MOMASP_SUBSET} & set(self.solve.methods):
            raise ValueError(
                "solve.source: MoMaSP compares two domains; name the source, or leave MoMaSP out of solve.methods"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Return the resolved configuration as JSON-like values."""
        plain = self.model_dump(mode="json")
        if self.compress.rule:
            plain["compress"]["method"] = self.compress_method.value
        return plain


def load_config(path: Path, overrides: Sequence[str] = (), sizes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read and validate a run file; `overrides` are `section.key=value` with TOML values.

    `sizes` are keys of [compress]. A rule among them stands in for the file's own, and for the layers it names.

    Raises ConfigError naming the file, the key, the rule and the value.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no run file at '{path}'") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from None
    for override in overrides:
        _apply(plain, override)
    _share_options(plain)
    if sizes and isinstance(plain.get("compress", {}), dict):
        plain["compress"] = with_sizes(plain.get("compress", {}), sizes)
    try:
        return RunConfig.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(f"'{path}': {_explain(error)}") from None


def _share_options(plain: dict[str, Any]) -> None:
    """Hand the table [options] to every factory of the run file; what a section says itself comes first."""
    shared = plain.pop("options", {})
    if not isinstance(shared, dict):
        raise ConfigError(f"options: must be a table of what every factory is given, got {shared!r}")
    domains = plain.get("domains")
    sections = [plain.get(name) for name in ("network", "finetune", "evaluate", "validation")]
    for section in [*sections, *(domains.values() if isinstance(domains, dict) else [])]:
        for key in ("options", "train_options"):
            has_factory = isinstance(section, dict) and (key == "options" or "train" in section)
            if shared and has_factory and isinstance(section.setdefault(key, {}), dict):
                section[key] = {**shared, **section[key]}


def parse_bytes(text: str) -> int:
    """Return the bytes in `8GiB`, `500 MB` or `1024`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"memory limit: must read like 8GiB, 500MB or 1024, got '{text}'")
    number, unit = float(match[1]), (match[2] or "").lower()
    power = " kmgt".index(unit[0]) if unit else 0
    return int(number * (1024 if unit.endswith("i") else 1000) ** power)


def _apply(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set: must read like solve.ridge=1e-3, got '{override}'")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        plain = plain.setdefault(section, {})
        if not isinstance(plain, dict):
            raise ConfigError(f"--set: '{section}' in '{key}' is not a section")
    plain[last] = value


def _explain(error: ValidationError) -> str:
    """Return the first problem in one line, with the nearest known name for an unknown key."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    loose = problem["type"] == "model_type" and problem["loc"][0] == "compress"  # neither a layer's table nor a rule
    if problem["type"] == "extra_forbidden" or loose:
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
        layer = " (a layer is a table with 'method' and 'size')" if loose else ""
        return f"unknown key '{place}'; nearest: '{near[0]}'{layer}" if near else f"unknown key '{place}'"
    if problem["type"] == "missing":
        return f"'{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not place or problem["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _known_keys(place: Sequence[int | str]) -> list[str]:
    """Return the keys a section may have; sections of free names are walked through."""
    section: type[BaseModel] = RunConfig
    free: Mapping[str, type[BaseModel]] = {"domains": DataSection, "compress": ChoiceSection}
    for part in place:
        if part in free and len(place) > 1:
            section = free[str(part)]
        elif str(part) in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            section = next(
                (kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), section
            )
    return list(section.model_fields)
