"""Where channels lie among features: places written out, and read back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.channels import ChannelSpan


@st.composite
def spans(draw):
    channels, block, repeats = (draw(st.integers(1, 4)) for _ in range(3))
    stride = channels * block + draw(st.integers(0, 3)) if repeats > 1 else 0
    return ChannelSpan("fc", draw(st.integers(0, 3)), block, repeats, stride), channels


def by_hand(span, channels):
    """The features of each channel, place after place."""
    return [
        [
            span.start + place * span.stride + c * span.block + b
            for place in range(span.repeats)
            for b in range(span.block)
        ]
        for c in range(channels)
    ]


@given(spans())
def test_places_are_those_written_out_and_read_back(drawn):
    span, channels = drawn
    places = span.places(channels)
    assert places.tolist() == by_hand(span, channels)
    assert span.stop(channels) == places.max() + 1
    back = ChannelSpan.at("fc", places)
    assert back.places(channels).tolist() == places.tolist()
    if channels > 1:
        assert back == span


@given(spans(), st.data())
def test_a_narrowed_span_is_where_the_channels_are_once_others_are_taken_out(drawn, data):
    span, channels = drawn
    kept = data.draw(st.lists(st.integers(0, channels - 1), min_size=1, unique=True).map(sorted))
    left = np.delete(np.arange(span.stop(channels) + 2), np.delete(span.places(channels), kept, axis=0))
    here = np.searchsorted(left, span.places(channels)[kept])
    assert span.narrowed(channels - len(kept)).places(len(kept)).tolist() == here.tolist()


@given(st.permutations(range(6)))
def test_only_regular_places_are_a_span(order):
    places = np.sort(np.array(order).reshape(3, 2), axis=1)
    span = ChannelSpan.at("fc", places)
    regular = [[[0, 1], [2, 3], [4, 5]], [[0, 3], [1, 4], [2, 5]]]
    assert (span is not None) == (places.tolist() in regular)


@pytest.mark.parametrize("bad", [{"start": -1}, {"block": 0}, {"repeats": 0}, {"stride": -1}, {"repeats": 1.5}])
def test_numbers_that_are_none_are_refused(bad):
    with pytest.raises(InvalidInputError, match=r"layer 'fc': its channels must start at 0 or later"):
        ChannelSpan("fc", **bad)
