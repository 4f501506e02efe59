"""The Python that a run file names, called as the run file says: what it gives back is checked where it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import GeneratorType
from typing import Any

from torch import nn

from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.network.capture.batches import holds_batches
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.masks import Mask, MaskOf
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.torch_library import usable_device
from dalr_stream.network.training.setting import Loss, cross_entropy
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.finetune_section import FinetuneSection
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.runfile.user_modules import UserModules, require_takes


class UserCode:
    """The functions of one run file: the network's, the loaders', the metrics'."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """`folder` is the run file's."""
        self._config = config
        self._folder = folder
        for path in config.run.import_from:
            if not (folder / path).is_dir():
                raise ConfigError(f"run.import_from: there is no folder '{(folder / path).resolve()}'")
        self._modules = UserModules(folder, config.run.import_from, config.factories)

    def importing(self) -> AbstractContextManager[None]:
        """Let the Python beside the run file import what lies there, for the length of the block."""
        return self._modules.importing()

    def resolve(self, name: str, key: str) -> Callable[..., Any]:
        """Return the function that `module:function` names; `key` is the run file's key, for the message."""
        return self._modules.resolve(name, key)

    def digest(self, *names: str | None) -> str:
        """Return the digest of the Python that `module:function` names reach."""
        return self._modules.digest(name for name in names if name)

    # --- the network ---------------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """Return the network as it is built, untrained."""
        section = self._config.network
        with self.importing():
            build = self.resolve(section.build, "network.build")
            require_takes(build, section.build, "network.options", **section.options)
            model = build(**section.options)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"network.build: '{section.build}' must return a torch module, got {type(model).__name__}"
            )
        return model

    def placed(self) -> nn.Module:
        """Return the network as it is built, where forward passes run; raises ConfigError where that is not there."""
        device = self._config.network.device
        if device is None:
            return self.build()
        try:
            return self.build().to(usable_device(device))
        except InvalidInputError as error:
            raise ConfigError(f"network.device: {error}") from None

    @property
    def train_options(self) -> dict[str, Any]:
        """What the run file hands to its training."""
        section = self._config.network
        start = {} if section.start is None else {"start": (self._folder / section.start).resolve()}
        return {**section.train_options, **start}

    def trainer(self, name: str) -> Callable[..., Any]:
        """Return the function that trains, the run file's `network.train`."""
        train = self.resolve(name, "network.train")
        require_takes(train, name, "network.train_options", "model", seed=0, report=print, **self.train_options)
        return train

    # --- the data ------------------------------------------------------------------------------------------------

    def batches(self, domain: str) -> Iterable[Any]:
        """Return a domain's loader."""
        return self.loader(f"domains.{domain}", self._config.domains[domain])

    def loader(self, key: str, section: DataSection) -> Iterable[Any]:
        """Return the loader that a section of the run file names."""
        factory = self.resolve(section.batches, f"{key}.batches")
        options = {"seed": self._config.run.seed, **section.options}
        require_takes(factory, section.batches, f"{key}.options", **options)
        with self.importing():
            loader: Iterable[Any] = factory(**options)
        if not holds_batches(loader) or isinstance(loader, GeneratorType):
            raise ConfigError(
                f"{key}.batches: '{section.batches}' must return batches that can be iterated again, such as a list or "
                f"a DataLoader, got a {type(loader).__name__}"
            )
        return loader

    @cached_property
    def first_batch(self) -> Any:
        """The first batch of the first domain."""
        domain = next(iter(self._config.domains))
        with self.importing():
            batch = next(iter(self.batches(domain)), None)
        if batch is None:
            raise InvalidInputError(f"domains.{domain}.batches: the loader is empty: check the data set and its split")
        return batch

    @cached_property
    def rows(self) -> RowRule:
        """Which rows of the layers are recorded."""
        section = self._config.capture
        mask: Mask | None
        if isinstance(section.mask, dict):
            mask = {pattern: self._mask(name, f"capture.mask.{pattern}") for pattern, name in section.mask.items()}
        else:
            mask = None if section.mask is None else self._mask(section.mask, "capture.mask")
        seed = self._config.run.seed
        return RowRule(
            mask,
            section.most_per_sample,
            seed,
            section.most_patches,
            prove=section.prove,
            gradients=self._gradients if self._config.network.gradients else None,
        )

    @property
    def _gradients(self) -> GradientRule:
        """Which gradients are recorded."""
        section, outputs = self._config.gradients, self._config.gradients.outputs
        functions: dict[str, Any] = {"outputs": outputs, "loss": None}
        for key, name, takes in (("outputs", outputs, ["returned"]), ("loss", section.loss, ["returned", "batch"])):
            if name is not None and ":" in name:
                functions[key] = self.resolve(name, f"gradients.{key}")
                require_takes(functions[key], name, f"gradients.{key}", *takes)
        return section.rule(self._config.run.seed, **functions)

    def _mask(self, name: str | list[str], key: str) -> Any:
        """Return a key of the batch, the function that `module:function` names, or a list of these."""
        if isinstance(name, list):
            return [self._mask(one, key) for one in name]
        if ":" not in name:
            return name
        function: MaskOf = self.resolve(name, key)
        return function

    # --- what judges a network -----------------------------------------------------------------------------------

    def metric(self, key: str, section: LabelledSection) -> Callable[..., Any]:
        """Return the metric of one's own that a section of the run file names."""
        metric = self.resolve(section.metric, f"{key}.metric")
        require_takes(metric, section.metric, f"{key}.metric", "model", "batches")
        return metric

    def loss(self, section: FinetuneSection) -> Loss:
        """Return the loss of labels that fine-tuning minimises."""
        if section.loss == "cross_entropy":
            return cross_entropy
        loss: Loss = self.resolve(section.loss, "finetune.loss")
        require_takes(loss, section.loss, "finetune.loss", "outputs", "labels")
        return loss
