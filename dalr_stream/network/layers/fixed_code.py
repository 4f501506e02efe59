"""Layers that multiply by their weights in code of their own, so that no other module can take their place.

Recurrent layers hand all their weights to one kernel that runs through the sequence, an attention its output layer's to
another; the code of a scripted network was fixed by torch.jit.
"""

from __future__ import annotations

import torch
from torch import nn

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def why_fixed(module: nn.Module) -> str | None:
    """Return why a layer with weights cannot be replaced; None where its code is not of these kinds."""
    if isinstance(module, RECURRENT):
        return f"it is a recurrent layer ({type(module).__name__}), which reads its weights without calling a layer"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "it is the output of a MultiheadAttention, which reads its weight without calling it"
    if isinstance(module, torch.jit.ScriptModule) and any(one.ndim > 1 for one in module.parameters(recurse=False)):
        kind = getattr(module, "original_name", type(module).__name__)
        return (
            f"it is a scripted {kind}, whose code torch.jit has fixed: build the network from its Python classes and "
            "load its weights into that"
        )
    return None
