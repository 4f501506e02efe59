"""What a forward pass still needs at a place: what is done there, and which of it is used by what is still to run."""

import pytest
import torch
from torch import nn

from dalr_stream.network.capture.resuming.calls import ForwardCalls


def needed(model, *names):
    """Modules that are done before the first of `names`, and whether what they gave is used."""
    done = ForwardCalls.of(model.eval(), torch.randn(2, 3)).done_before(names)
    return {".".join(f"{name}#{number}" for name, number in way[1:]): used for way, used in done.items()}


def test_of_a_chain_the_last_one_is_used_whoever_passed_it_on():
    chain = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Identity(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert needed(chain, "3") == {"0#0": False, "1#0": False, "2#0": True}
    assert needed(chain, "5", "3") == needed(chain, "3")
    assert needed(chain, "5") == {"0#0": False, "1#0": False, "2#0": False, "3#0": False, "4#0": True}


class Skipping(nn.Module):
    """A stream that goes around a block, an activation that is called twice, and a function between modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.block, self.head = nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)), None
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.relu(self.stem(x))
        return self.head(self.relu(self.block(h.tanh())) + h)


def test_what_goes_around_a_block_is_used_after_it():
    before = {"stem#0": False, "relu#0": True}
    assert needed(Skipping(), "block.0") == before
    assert needed(Skipping(), "head") == {**before, "block#0": False, "relu#1": True}


def test_a_place_that_no_forward_pass_comes_to_is_named():
    with pytest.raises(KeyError, match="elsewhere"):
        needed(Skipping(), "elsewhere")
