"""A layer that is called several times in one pass has a mask for each call: which speaks of which input is proved."""

import numpy as np
import pytest
import torch
from token_networks import ALL_ROWS, drawn, padded, same_as
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

WIDTH = 6


class Tower(nn.Module):
    def __init__(self, *, heeds):
        super().__init__()
        self.heeds = heeds
        self.fc, self.out = nn.Linear(WIDTH, 8), nn.Linear(8, 4)

    def read(self, x, mask):
        """What the layer reads: each position, and the mean of those that count."""
        weights = mask[..., None].to(x) if self.heeds else torch.ones_like(x[..., :1])
        return x + (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def forward(self, x, mask):
        return (self.out(self.fc(self.read(x, mask))) * mask[..., None]).sum(1)


class Siamese(nn.Module):
    def __init__(self, *, heeds=True):
        super().__init__()
        self.tower = Tower(heeds=heeds)

    def forward(self, one, mask_one, two, mask_two):
        return (self.tower(one, mask_one) * self.tower(two, mask_two)).sum(-1)


def pairs(first, second, samples=4):
    one, two = padded(samples, first), padded(samples, second).flip(0)
    return {
        "one": drawn(samples, first, WIDTH),
        "mask_one": one.long(),
        "two": drawn(samples, second, WIDTH, seed=2),
        "mask_two": two.long(),
    }


def statistics(net, batches, mask, **rule):
    layers = select_layers(net, ["tower.*"])
    return accumulate_stream(net.eval(), batches, layers, rows=ds.RowRule(mask=mask, **rule), folding=ALL_ROWS)


def rows(net, batch):
    return [net.tower.read(batch[key], batch[f"mask_{key}"])[batch[f"mask_{key}"].bool()] for key in ("one", "two")]


MASKS = ["mask_one", "mask_two"]
lengths = pytest.mark.parametrize(("first", "second"), [(5, 7), (5, 5), (3, 2)])


@lengths
@pytest.mark.parametrize(
    "mask", [MASKS, tuple(MASKS), {"tower.*": MASKS}, [lambda b: b["mask_one"], lambda b: b["mask_two"]]]
)
def test_rows_are_those_that_the_mask_of_each_call_keeps(first, second, mask):
    net, batches = Siamese(), [pairs(first, second), pairs(second, first)]
    found = statistics(net, batches, mask)
    same_as(found["tower.fc"], torch.cat([part for batch in batches for part in rows(net, batch)]))
    assert found["tower.fc"].samples == 8


def test_a_call_may_have_none():
    net, batch = Siamese(), pairs(5, 7)
    with torch.no_grad():
        one, two = rows(net, batch)[0], net.tower.read(batch["two"], batch["mask_two"])
    same_as(statistics(net, [batch], ["mask_one", None])["tower.fc"], torch.cat([one, two.flatten(0, 1)]))


def test_rows_of_a_sample_are_chosen_from_both_calls():
    found = statistics(Siamese(), [pairs(5, 7)], MASKS, most_per_sample=1)
    assert found["tower.fc"].count == 8


@lengths
def test_masks_of_other_calls_are_refused(first, second):
    with pytest.raises(InvalidInputError, match=r"layer 'tower\.fc'.*(rows that count change|those of the mask)"):
        statistics(Siamese(), [pairs(first, second)], MASKS[::-1])


@lengths
def test_a_network_that_does_not_heed_them_is_refused(first, second):
    with pytest.raises(InvalidInputError, match=r"layer 'tower\.fc', call 1 of 2: rows that count change"):
        statistics(Siamese(heeds=False), [pairs(first, second)], MASKS)


def test_one_mask_for_all_calls_is_refused_where_it_is_not_that_of_all():
    """A function that returns the mask of one input was taken at its word."""
    batch = pairs(5, 5)
    for mask in ("mask_one", lambda b: b["mask_one"]):
        with pytest.raises(InvalidInputError, match=r"layer 'tower\.fc', call 2 of 2: rows that count change"):
            statistics(Siamese(), [batch], mask)
    with pytest.raises(InvalidInputError, match="a list of these for the calls of a layer"):
        statistics(Siamese(), [pairs(5, 7)], "mask_one")


@pytest.mark.parametrize("mask", [["mask_one"], [*MASKS, "mask_one"]])
def test_there_is_one_for_each_call(mask):
    with pytest.raises(InvalidInputError, match=rf"layer 'tower\.fc': has {len(mask)} masks, .* and is called 2 times"):
        statistics(Siamese(), [pairs(5, 5)], mask)


def test_without_padding_in_one_of_them_the_other_is_proved_all_the_same():
    net, batch = Siamese(), pairs(5, 5)
    batch["mask_one"] = torch.ones_like(batch["mask_one"])
    same_as(statistics(net, [batch], MASKS)["tower.fc"], torch.cat(rows(net, batch)))


def test_they_are_part_of_the_rule_and_of_a_batchs_digest():
    assert ds.RowRule(mask=MASKS).words == "rows that for its calls mask 'mask_one', mask 'mask_two' keeps"
    batch = pairs(5, 5)
    one, other = (ds.RowRule(mask=mask).masks_of(batch, 4).digest for mask in (MASKS, MASKS[::-1]))
    assert one != other
    for bad in ([], ["mask_one", 3], [["mask_one"]]):
        with pytest.raises(InvalidInputError, match="a list of these for the calls of a layer"):
            ds.RowRule(mask=bad)


@pytest.mark.parametrize("mask", ['["mask_one", "mask_two"]', '{"tower.*" = ["mask_one", "mask_two"]}'])
def test_a_run_file_has_them_as_a_list(mask, tmp_path):
    (tmp_path / "masks_of_calls.py").write_text("def build(): ...\ndef pairs(*, seed): ...\n")
    (tmp_path / "run.toml").write_text(
        f'[run]\nname = "x"\noutput = "out"\n[network]\nbuild = "masks_of_calls:build"\nlayers = ["*"]\n'
        f'[domains.target]\nbatches = "masks_of_calls:pairs"\n[capture]\nmask = {mask}\n'
        '[solve]\nmethods = ["svd"]\n'
    )
    read = Project(load_config(tmp_path / "run.toml"), tmp_path).code.rows.mask
    assert read == (MASKS if mask.startswith("[") else {"tower.*": MASKS})


@pytest.mark.parametrize("key", ["attention_mask", "mask_one", "masks", "Mask_2"])
def test_masks_are_known_by_their_names(key):
    """And are not taken for content that stands in the padding."""
    x, mask = drawn(4, 5, WIDTH), padded(4, 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = Tower(heeds=True)

        def forward(self, x, **masks):
            return self.tower(x, masks[key])

    found = statistics(Net(), [{"x": x, key: mask.long()}], key)
    assert found["tower.fc"].count == int(mask.sum())
    np.testing.assert_array_equal(found["tower.fc"].features, WIDTH)
