"""The run file: TOML, validated whole before anything runs.

Unknown keys are errors that name the nearest known one; a value of the wrong kind is an error that names its key. The
resolved configuration, with every default filled in, travels in every artefact. A run file names Python only as
`module:function`, where the user wrote it; nothing else read from disk is ever executed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.streaming.folding import CUPY
from dalr_stream.workflow.runfile.by_blocks import require_by_blocks, require_sweep
from dalr_stream.workflow.runfile.compress_section import BY_NATS, CompressSection, Order, with_sizes
from dalr_stream.workflow.runfile.finetune_section import FinetuneSection
from dalr_stream.workflow.runfile.gradients_section import GradientsSection
from dalr_stream.workflow.runfile.labelled_sections import EvaluateSection, LabelledSection
from dalr_stream.workflow.runfile.messages import explain, require_current_keys
from dalr_stream.workflow.runfile.methods_of_families import default_of, weighted_within_budget, within_budget
from dalr_stream.workflow.runfile.overrides import apply, share_options
from dalr_stream.workflow.runfile.sections import (
    AccumulateSection,
    CaptureSection,
    DataSection,
    NetworkSection,
    ReportSection,
    RunSection,
    Section,
    SolveSection,
)

_TWO_DOMAINS = "MoMaSP compares two domains"
_OF_TRANSFORMERS = (
    "; of a network of transformers, `dalr-stream init FOLDER --from-transformers ITS-FOLDER` writes a run file, and "
    "`estimate` reads its config.json where --samples N and --shape or --tokens say what data there will be"
)


class RunConfig(Section):
    """A whole run file."""

    run: RunSection
    network: NetworkSection
    domains: dict[str, DataSection] = Field(min_length=1)
    capture: CaptureSection = CaptureSection()
    gradients: GradientsSection = GradientsSection()
    accumulate: AccumulateSection = AccumulateSection()
    solve: SolveSection = SolveSection()
    compress: CompressSection = CompressSection()
    finetune: FinetuneSection | None = None
    """Fine-tuning of the compressed network; none where it is left out."""
    evaluate: EvaluateSection | None = None
    validation: LabelledSection | None = None
    """What the joint search scores networks on; never the test split."""
    report: ReportSection = ReportSection()

    @property
    def factories(self) -> tuple[str, ...]:
        """Every `module:function` that the run file names."""
        sections = [*self.domains.values(), self.finetune, self.evaluate, self.validation]
        named = [self.network.build, self.network.train, *self.capture.mask_functions, *self.gradients.functions]
        named += [getattr(section, key, None) for section in sections for key in ("batches", "metric", "loss")]
        return tuple(name for name in named if name and ":" in name)

    def holdout(self, domain: str) -> HoldoutRule:
        """Return the share of a domain's samples that is held out: of the target, where no domain is named for it."""
        measured = domain == self.solve.target and self.solve.heldout is None
        return HoldoutRule(self.accumulate.heldout_share if measured else 0.0, self.run.seed)

    def shards(self, domain: str) -> int:
        """Return how many records a domain's training samples are kept as: of the target; others keep one."""
        return self.accumulate.shards if domain == self.solve.target else 1

    @property
    def selects(self) -> bool:
        """Whether any of the methods is a selection: those need what the layers' readers read."""
        return any(method.family is Family.SELECTION for method in self.solve.methods)

    @property
    def narrows(self) -> bool:
        """Whether any of the methods narrows heads: those need the attentions among the layers."""
        return any(method.family is Family.HEADS for method in self.solve.methods)

    @property
    def sweeps(self) -> bool:
        """Whether blocks are solved and written in one sweep, which keeps no moments."""
        return not self.accumulate.keep_moments

    @property
    def compress_method(self) -> Method:
        """The method of a rule that takes one for all layers."""
        return self.compress.method or default_of(Family.LOW_RANK, self.solve.methods) or self.solve.methods[0]

    @property
    def weighs_families(self) -> bool:
        """Whether the rule chooses each layer's method: where none is named, and losses of layers are in one unit."""
        by_nats = self.compress.rule in BY_NATS and bool(self.network.gradients)
        return self.compress.method is None and (self.compress.within_budget or by_nats)

    def methods_within_budget(self, named: Method | None) -> tuple[Method, ...]:
        """Return the methods that a layer may be compressed by, one of a family: of each family where none is named.

        The factor pairs after a selection or heads that are named are for layers that these do not apply to.
        """
        return within_budget(self.solve.methods, named)

    def weighted_within_budget(self, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        """Return the methods tried beside these: of each family the one weighted by gradients, where it is solved."""
        return weighted_within_budget(self.solve.methods, methods)

    @model_validator(mode="after")
    def _workers_read_rows_from_disk(self) -> RunConfig:
        for key in ("workers", "scheduler"):
            if getattr(self.accumulate, key) is not None and not self.capture.keep_activations:
                raise ValueError(
                    f"accumulate.{key}: other processes fold rows that lie on disk, and capture.keep_activations = "
                    f"false keeps none: leave out {key}, or keep the activations"
                )
        return self

    @model_validator(mode="after")
    def _segments_are_folded_directly(self) -> RunConfig:
        if self.accumulate.segment_batches is not None and self.capture.keep_activations:
            raise ValueError(
                "accumulate.segment_batches: is for rows that are folded as the network makes them; those that lie on "
                "disk have the same bits whoever captured them: leave it out, or set capture.keep_activations = false"
            )
        return self

    @model_validator(mode="after")
    def _cupy_reads_rows_from_disk(self) -> RunConfig:
        reasons = {
            "capture.keep_activations = false keeps none": not self.capture.keep_activations,
            'compress.order = "sequential" folds what networks compute': self.compress.order is Order.SEQUENTIAL,
        }
        for reason, holds in reasons.items():
            if self.accumulate.device == CUPY and holds:
                raise ValueError(
                    f"accumulate.device: 'cupy' folds rows that lie on disk, and {reason}: let torch fold, device = "
                    '"cuda"'
                )
        return self

    @model_validator(mode="after")
    def _methods_are_solved(self) -> RunConfig:
        asked = [(f"compress.{layer}.method", choice.method) for layer, choice in self.compress.layers.items()]
        if self.compress.rule and not self.weighs_families:
            asked.append(("compress.method", self.compress_method))
        compared = self.evaluate.compare if self.evaluate else ()
        self.compress.require_comparable(compared)
        for key, method in (*asked, *(("evaluate.compare", method) for method in compared)):
            if method.needs_source and self.solve.source is None:
                raise ValueError(f"{key}: {_TWO_DOMAINS}: name the other as solve.source, or choose another method")
            if method not in self.solve.methods:
                raise ValueError(f"{key}: '{method.value}' is not in solve.methods: add it, or choose another")
        return self

    @model_validator(mode="after")
    def _rows_are_recorded_as_needed(self) -> RunConfig:
        require_by_blocks(self.network, self.capture, self.accumulate)
        if self.sweeps:
            require_sweep(self.network, self.accumulate, self.solve, self.compress, self.evaluate, self.domains)
        needing = [method.value for method in self.solve.methods if method.needs_gradients]
        if needing and not self.network.gradients:
            raise ValueError(
                f"solve.methods: '{needing[0]}' needs the gradients of the layers it is solved for: name these, "
                'network.gradients = ["*"] say, or leave the method out'
            )
        return self

    @model_validator(mode="after")
    def _search_has_batches_of_its_own(self) -> RunConfig:
        validation, test = self.validation, self.evaluate
        if self.compress.max_drop is not None and validation is None:
            raise ValueError(
                "compress.max_drop: the search scores networks on labelled batches that are not the test split: add a "
                '[validation] section that names them, batches = "module:function"'
            )
        if validation and test and (validation.batches, validation.options) == (test.batches, test.options):
            raise ValueError(
                f"validation.batches: '{validation.batches}' is the test split of [evaluate], and sizes would be "
                "chosen on the data that judges them: name other labelled batches"
            )
        return self

    @model_validator(mode="after")
    def _fine_tuning_has_a_network_and_batches(self) -> RunConfig:
        training, test = self.finetune, self.evaluate
        if test and test.finetune and training is None:
            raise ValueError(
                "evaluate.finetune: networks are fine-tuned on batches that are not the test split: add a "
                '[finetune] section that names them, batches = "module:function"'
            )
        if training and not self.compress.wanted:
            raise ValueError(
                "finetune: fine-tunes the compressed network, and [compress] asks for none: name layers or a rule there"
            )
        if training and test and (training.batches, training.options) == (test.batches, test.options):
            raise ValueError(
                f"finetune.batches: '{training.batches}' is the test split of [evaluate], and the network would learn "
                "the data that judges it: name other batches"
            )
        return self

    @model_validator(mode="after")
    def _domains_exist(self) -> RunConfig:
        for key in ("target", "source", "heldout"):
            name = getattr(self.solve, key)
            if name is not None and name not in self.domains:
                known = ", ".join(f"'{domain}'" for domain in self.domains)
                raise ValueError(f"solve.{key}: there is no [domains.{name}]; there is {known}")
        if self.solve.source is None and any(method.needs_source for method in self.solve.methods):
            raise ValueError(f"solve.source: {_TWO_DOMAINS}; name the source, or leave MoMaSP out of solve.methods")
        return self

    def with_sizes(self, sizes: Mapping[str, Any]) -> RunConfig:
        """Return the same with other keys in [compress]; a rule among them replaces what decided the sizes.

        Raises ConfigError as `load_config` does.
        """
        section = with_sizes(self.compress.model_dump(exclude_unset=True), sizes)
        try:
            return RunConfig.model_validate({**dict(self), "compress": section})
        except ValidationError as error:
            raise ConfigError(explain(error, RunConfig)) from None

    def by_method(self, method: Method) -> RunConfig:
        """Return the same with one method for all layers, at the rule of [compress]."""
        return self.model_copy(update={"compress": self.compress.by(method)})

    def plain(self) -> dict[str, Any]:
        """Return the resolved configuration as JSON-like values."""
        plain = self.model_dump(mode="json")
        if self.compress.rule and self.compress.method is None:
            plain["compress"]["method"] = "auto" if self.weighs_families else self.compress_method.value
        return plain


def load_config(path: Path, overrides: Sequence[str] = (), sizes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read and validate a run file; `overrides` are `section.key=value` with TOML values.

    `sizes` are keys of [compress]. A rule among them stands in for the file's own, and for the layers it names.

    Raises ConfigError naming the file, the key, the rule and the value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no run file at '{path}'") from None
    except OSError as error:
        remedy = ": name the run file in it" if path.is_dir() else ""
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}{remedy}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from None
    return parse_config(text, path, overrides, sizes)


def parse_config(
    text: str, path: Path, overrides: Sequence[str] = (), sizes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Do the same with the text of a run file; `path` is for messages."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        remedy = _OF_TRANSFORMERS if path.suffix == ".json" else ""
        raise ConfigError(f"'{path}' is not valid TOML: {error}{remedy}") from None
    for override in overrides:
        apply(plain, override)
    require_current_keys(path, plain)
    share_options(plain)
    if sizes and isinstance(plain.get("compress", {}), dict):
        plain["compress"] = with_sizes(plain.get("compress", {}), sizes)
    try:
        return RunConfig.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(f"'{path}': {explain(error, RunConfig)}") from None
