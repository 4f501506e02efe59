"""The text pipeline: what it reads, the paragraphs it keeps apart, its training, and exactness on its transformer."""

from __future__ import annotations

import importlib
import random
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import ParameterIncreaseWarning

TEXT_FOLDER = Path(__file__).parents[2] / "pipelines" / "text"
TINY_NETWORK = {"blocks": 2, "width": 16, "heads": 2}
TINY_TRAINING = {
    "source_samples": 300,
    "source_learning_rate": 1e-2,
    "target_samples": 600,
    "target_epochs": 4,
    "target_learning_rate": 1e-2,
}
NOUNS = ("stream", "buffer", "parser", "socket", "header", "record", "window", "reader", "writer", "module", "thread")
VERBS = ("returns", "closes", "opens", "reads", "writes", "checks", "builds", "sends", "keeps", "finds", "drops")


def library_of(folder, modules=14, functions=100):
    """Write a small standard library: modules whose functions have docstrings, topics and a licence."""
    draw = random.Random(0)  # noqa: S311 - words, not secrets

    def sentence():
        one, two, verb = draw.choice(NOUNS), draw.choice(NOUNS), draw.choice(VERBS)
        return f"The {one} {verb} the {two} number {draw.choice(NOUNS)} {draw.choice(('first', 'last', 'never'))}."

    (folder / "pydoc_data").mkdir(parents=True)
    topics = {
        "topic": f"{sentence()} {sentence()}\n\n   >>> not_prose = 1\n\nA ``marked`` *sentence* about :ref:`names`."
    }
    (folder / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    (folder / "LICENSE.txt").write_text("This licence lets you do what you like.\n")
    for number in range(modules):
        lines = [f'"""{sentence()}"""', "import os", "# a comment on its own"]
        for index in range(functions):
            noun = draw.choice(NOUNS)
            lines += [f"def {noun}_{index}(self, {draw.choice(NOUNS)}={index}):", f'    """{sentence()}', ""]
            lines += [f'    {sentence()}"""']
            lines += [f"    {noun}_{step} = self.{draw.choice(NOUNS)}[{draw.randrange(100)}]" for step in range(9)]
            lines += [f"    return self.{noun}[{draw.randrange(100)}] + {index}", ""]
        (folder / f"module{number}.py").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return library_of(tmp_path_factory.mktemp("stdlib") / "lib")


@pytest.fixture
def text(monkeypatch, library):
    """The modules of the pipeline, found as a run file finds them, reading a library of the test's own."""
    monkeypatch.syspath_prepend(TEXT_FOLDER.parent / "shared")
    monkeypatch.syspath_prepend(TEXT_FOLDER)
    names = ("corpus", "data", "metrics", "network", "training")
    found = SimpleNamespace(**{short: importlib.import_module(f"text_{short}") for short in names})
    monkeypatch.setattr(found.data, "standard_library", lambda: library)
    return found


@pytest.fixture
def network(text):
    return text.network.build(**TINY_NETWORK).eval()


def as_strings(batches):
    return [bytes(row[row > 0].tolist()).decode("ascii") for row in batches.texts]


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class TestCorpus:
    def test_code_has_neither_docstrings_nor_comments(self, text, library):
        joined = "".join(text.corpus.code_pieces(library))
        assert "import os\n" in joined
        assert "return self." in joined
        assert "The " not in joined
        assert "#" not in joined
        assert "topics" not in joined

    def test_code_is_cut_at_lines_and_loses_none(self, text, library):
        pieces = text.corpus.code_pieces(library)
        assert max(map(len, pieces)) <= text.corpus.CONTEXT
        assert all(piece.endswith("\n") for piece in pieces)
        module = library / "module0.py"
        lines = list(text.corpus.code_lines(module.read_text()))
        assert "".join(text.corpus.pack_lines(lines, text.corpus.CONTEXT)) == "".join(f"{line}\n" for line in lines)
        assert list(text.corpus.pack_lines(["x" * 96, "yes", "n\N{LATIN SMALL LETTER O WITH DIAERESIS}"], 96)) == [
            "yes\n"
        ]

    def test_prose_is_sentences_without_markup_each_once(self, text, library):
        pieces = [piece for paragraph in text.corpus.prose_paragraphs(library) for piece in paragraph]
        assert len({piece.casefold() for piece in pieces}) == len(pieces) > 500
        assert "A marked sentence about names." in pieces
        assert "This licence lets you do what you like." in pieces
        assert not any("not_prose" in piece or "def " in piece for piece in pieces)
        assert all(piece.endswith(".") and len(piece) <= text.corpus.CONTEXT for piece in pieces)

    @pytest.mark.parametrize(
        ("sentence", "prose"),
        [
            ("The buffer returns what was written.", True),
            ("the buffer returns what was written.", False),
            ("The buffer returns what was written", False),
            ("The buf[0] -> x_1 == {2: '3'} returned.", False),
            ("Too short.", False),
        ],
    )
    def test_what_counts_as_prose(self, text, sentence, prose):
        assert text.corpus.is_prose(sentence) is prose

    def test_a_sentence_that_is_no_prose_parts_its_neighbours(self, text):
        one, two = "The reader opens the window at last.", "The writer closes the record for ever."
        assert list(text.corpus.pack_sentences(f"{one} {two}", 96)) == [f"{one} {two}"]
        assert list(text.corpus.pack_sentences(f"{one} {two}", 60)) == [one, two]
        assert list(text.corpus.pack_sentences(f"{one} X_1 = [0]. {two}", 96)) == [one, two]


class TestDomains:
    def test_prose_is_dealt_once_and_by_paragraphs(self, text, library):
        data = text.data
        parts = [as_strings(f(seed=0)) for f in (data.target_train, data.target_validation, data.target_test)]
        paragraphs = text.corpus.prose_paragraphs(library)
        assert sorted(chain.from_iterable(parts)) == sorted(piece for paragraph in paragraphs for piece in paragraph)
        for paragraph in paragraphs:
            assert sum(bool(set(paragraph) & set(part)) for part in parts) == 1
        assert all(parts)

    def test_code_is_dealt_once(self, text, library):
        parts = [as_strings(text.data.code(use, 0, samples=None, batch_size=9)) for use in text.data.CodeUse]
        assert sorted(chain.from_iterable(parts)) == sorted(text.corpus.code_pieces(library))
        assert all(parts[:2])
        assert as_strings(text.data.source(seed=0)) == parts[1]

    def test_the_deal_follows_the_seed(self, text):
        same, again, other = (as_strings(text.data.target_train(seed=s, samples=50)) for s in (1, 1, 2))
        assert same == again != other
        assert len(same) == 50

    def test_each_position_is_answered_with_the_next_character(self, text):
        texts = text.data.as_texts(["abc", "de"])
        inputs, targets = text.data.inputs_and_targets(texts)
        assert targets.tolist() == [[97, 98, 99], [100, 101, 0]]
        assert inputs.tolist() == [[1, 97, 98], [1, 100, 0]]
        assert text.data.is_text((inputs, targets)).tolist() == [[True] * 3, [True, True, False]]

    def test_a_batch_is_as_long_as_its_longest_text_and_starts_again(self, text):
        batches = text.data.target_train(seed=0, samples=25, batch_size=10)
        first, second = list(batches), list(batches)
        assert [len(targets) for _, targets in first] == [10, 10, 5]
        assert len(batches) == 3
        for (inputs, targets), (inputs_again, _) in zip(first, second, strict=True):
            assert torch.equal(inputs, inputs_again)
            assert (targets[:, -1] != 0).any()
        assert any((targets[:, -1] == 0).any() for _, targets in first)  # padding there is

    def test_by_length_sorts_and_loses_none(self, text):
        batches = text.data.target_train(seed=0, samples=25)
        lengths = list(map(len, as_strings(batches.by_length())))
        assert lengths == sorted(lengths)
        assert sorted(as_strings(batches.by_length())) == sorted(as_strings(batches))

    def test_batch_size_zero_is_refused(self, text):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            text.data.target_train(seed=0, batch_size=0)


class TestNetworkAndTraining:
    def test_network_is_traceable_at_any_length(self, text, network):
        traced = fx.symbolic_trace(network)
        for length in (1, 7, 96):
            inputs = torch.randint(2, 128, (3, length), generator=torch.Generator().manual_seed(length))
            assert torch.equal(traced(inputs), network(inputs))
            assert network(inputs).shape == (3, length, text.network.CHARACTERS)

    def test_padding_and_what_comes_later_change_no_score(self, text, network):
        (inputs, _), *_ = text.data.target_train(seed=0, samples=8, batch_size=8)
        with torch.inference_mode():
            together = network(inputs)
            for row, scores in zip(inputs, together, strict=True):
                length = int((row > 0).sum())
                torch.testing.assert_close(network(row[None, :length])[0], scores[:length], rtol=1e-5, atol=1e-6)

    def test_build_gives_the_same_weights_and_leaves_the_random_state(self, text):
        before = torch.get_rng_state()
        assert states_equal(text.network.build(**TINY_NETWORK), text.network.build(**TINY_NETWORK))
        assert torch.equal(torch.get_rng_state(), before)

    def test_heads_that_do_not_share_the_width_are_refused(self, text):
        with pytest.raises(ValueError, match="heads must divide the width 16, got 3"):
            text.network.build(blocks=1, width=16, heads=3)

    def test_training_learns_follows_the_seed_and_leaves_the_random_state(self, text):
        def trained(seed, lines=None):
            model = text.network.build(**TINY_NETWORK)
            report = (lambda _: None) if lines is None else lines.append
            text.training.train(model, seed=seed, report=report, **TINY_TRAINING)
            return model

        state, lines = torch.get_rng_state(), []
        one = trained(0, lines)
        assert torch.equal(torch.get_rng_state(), state)
        assert not one.training
        assert states_equal(one, trained(0))
        assert not states_equal(one, trained(1))
        test = text.data.target_test(seed=0)
        untrained = text.network.build(**TINY_NETWORK).eval()
        assert text.metrics.bits_per_character(one, test) < 0.7 * text.metrics.bits_per_character(untrained, test)
        assert text.metrics.next_character_accuracy(one, test) > 0.2
        assert [line.partition(":")[0] for line in lines if "accuracy" in line] == ["source", "target"]

    @pytest.mark.parametrize("texts", [0, 96])
    def test_too_few_texts_to_learn_from_are_refused(self, text, texts):
        model = text.network.build(**TINY_NETWORK)
        with pytest.raises(ValueError, match=f"at least four steps of 32 texts, got {texts} texts"):
            text.training.train(model, seed=0, report=print, source_samples=texts)

    def test_four_steps_are_enough(self, text):
        model = text.network.build(**TINY_NETWORK)
        text.training.train(model, seed=0, report=lambda _: None, source_samples=97, target_samples=97, target_epochs=1)
        assert not model.training

    def test_foreign_model_is_refused(self, text):
        with pytest.raises(TypeError, match=r"must be a TextNetwork .*, got Linear"):
            text.training.train(torch.nn.Linear(2, 2), seed=0, report=print)

    @pytest.mark.parametrize(("epochs", "learning_rate"), [(0, 0.1), (1, 0.0)])
    def test_empty_schedule_is_refused(self, text, epochs, learning_rate):
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            text.training.Schedule(epochs, learning_rate)


class TestMetrics:
    def test_padding_does_not_count(self, text, network):
        batches = text.data.target_train(seed=0, samples=12, batch_size=12)
        alone = text.data.Batches(batches.texts, 1)
        right = total = 0
        for inputs, targets in alone:
            assert (targets != 0).all()
            right += int((network(inputs).argmax(2) == targets).sum())
            total += targets.numel()
        assert text.metrics.next_character_accuracy(network, batches) == pytest.approx(right / total)
        assert text.metrics.bits_per_character(network, batches) == pytest.approx(
            text.metrics.bits_per_character(network, alone), rel=1e-5
        )

    def test_a_network_that_knows_nothing_has_seven_bits_to_guess(self, text, network):
        torch.nn.init.zeros_(network.head.weight)
        batches = text.data.target_train(seed=0, samples=5)
        assert text.metrics.bits_per_character(network, batches) == pytest.approx(7.0)


class TestExactness:
    """What the package promises, on a whole transformer with padding."""

    @pytest.fixture
    def moments(self, text, network):
        layers = ds.network.select_layers(network, ["blocks.*_proj", "blocks.*.fc?"])
        return accumulate_stream(
            network,
            text.data.target_train(seed=0, samples=60, batch_size=20),
            layers,
            rows=ds.RowRule(text.data.is_text),
        )

    @pytest.fixture
    def batch(self, text):
        return next(iter(text.data.target_test(seed=0, samples=20)))[0]

    def test_moments_of_padded_batches_are_those_of_the_texts_one_by_one(self, text, network):
        layers = ds.network.select_layers(network, ["blocks.*_proj", "blocks.*.fc?"])
        padded = text.data.target_train(seed=0, samples=60, batch_size=20)
        alone = text.data.Batches(padded.texts, 1)
        rule = ds.RowRule(text.data.is_text)
        ours = accumulate_stream(network, padded, layers, rows=rule, folding=ds.Folding(ds.HoldoutRule(0.0)))
        naive = accumulate_stream(network, alone, layers, rows=rule, folding=ds.Folding(ds.HoldoutRule(0.0)))
        assert all((targets != 0).all() for _, targets in alone)
        characters = int((padded.texts != 0).sum())
        assert len(ours) == 12
        for name, moments in ours.items():
            assert moments.count == naive[name].count == characters
            assert moments.samples == naive[name].samples == 60
            np.testing.assert_allclose(moments.mean, naive[name].mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(moments.covariance, naive[name].covariance, rtol=1e-4, atol=1e-6)

    def test_padding_left_in_is_another_statistic(self, text, network, moments):
        layers = ds.network.select_layers(network, ["blocks.0.fc2"])
        batches = text.data.target_train(seed=0, samples=60, batch_size=60)
        unmasked = accumulate_stream(network, batches, layers)["blocks.0.fc2"]
        assert unmasked.count > moments["blocks.0.fc2"].count
        assert np.abs(unmasked.mean - moments["blocks.0.fc2"].mean).max() > 1e-3

    @pytest.mark.parametrize("affine", [True, False])
    def test_anchored_at_full_rank_is_the_network(self, network, moments, batch, affine):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParameterIncreaseWarning)
            full = {
                name: ds.dalr(*ds.network.weights_of(network, name), found, affine=affine).at_rank(
                    min(ds.network.weights_of(network, name)[0].shape)
                )
                for name, found in moments.items()
            }
        assert len(full) == 12
        small = ds.compress(network, full)
        with torch.inference_mode():
            torch.testing.assert_close(small(batch), network(batch), rtol=1e-5, atol=2e-6)

    def test_every_node_kept_is_the_network(self, network, moments, batch):
        whole = {f"blocks.{block}.fc1": ds.spectral(moments[f"blocks.{block}.fc2"]).at_size(64) for block in (0, 1)}
        small = ds.compress(network, whole, example=batch)
        with torch.inference_mode():
            torch.testing.assert_close(small(batch), network(batch), rtol=1e-5, atol=2e-6)

    def test_factors_in_the_attention_and_nodes_in_the_rest_are_one_network(self, network, moments, batch):
        replaced = {f"blocks.{block}.fc1": ds.spectral(moments[f"blocks.{block}.fc2"]).at_size(40) for block in (0, 1)}
        for name in (f"blocks.{block}.{part}_proj" for block in (0, 1) for part in ("q", "k", "v", "out")):
            replaced[name] = ds.dalr(*ds.network.weights_of(network, name), moments[name]).at_rank(4)
        small = ds.compress(network, replaced, example=batch)
        assert small.blocks[1].fc1.out_features == small.blocks[1].fc2.in_features == 40
        assert small.blocks[0].q_proj[0].out_features == 4
        assert small(batch).shape == network(batch).shape
        saved = sum(parameter.numel() for parameter in network.parameters()) - sum(
            parameter.numel() for parameter in small.parameters()
        )
        assert saved == 2 * (24 * (16 + 1 + 16) + 4 * (16 * 16 - 4 * 32))
