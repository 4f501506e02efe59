"""The network compressed whole by one method after another, to the rule of [compress], to set beside the saved one.

Each method shares the budget out for itself, so all of them are as good as the rule lets them be.
"""

from __future__ import annotations

import copy

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.surgery.compress import compress
from dalr_stream.numerics.methods import Method
from dalr_stream.progress import Progress
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.sizes.sizing import decide


def by_method(project: Project, store: StoreView, method: Method, progress: Progress) -> tuple[nn.Module, Compression]:
    """Return the network with every layer compressed by a method, as the rule of [compress] says, and how."""
    _ = project.network, project.structure, project.code.first_batch  # once for all methods
    other = copy.copy(project)
    other.config = project.config.by_method(method)
    replacements, compression = decide(other, store, progress)
    example = project.structure or project.code.first_batch
    return compress(project.network, replacements, example=example), compression
