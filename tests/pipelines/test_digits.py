"""The digits pipeline: the glyphs it draws, the split it keeps apart, and what its training promises."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import fx

PIPELINES = Path(__file__).parents[2] / "pipelines"
CLASSES, FACES = 12, 2
TINY_NETWORK = {"first_channels": 4, "second_channels": 8, "width": 32}
TINY_TRAINING = {
    "classes": CLASSES,
    "faces": FACES,
    "source_samples": 1500,
    "source_epochs": 4,
    "source_learning_rate": 3e-3,
    "target_samples": 200,
    "target_epochs": 30,
}


@pytest.fixture
def digits(monkeypatch):
    """The modules of the pipeline, found as a run file finds them: with their folder and the shared one on the path."""
    monkeypatch.syspath_prepend(PIPELINES / "shared")
    monkeypatch.syspath_prepend(PIPELINES / "digits")
    names = {"atlas": "glyph_atlas", "rendering": "glyph_rendering", "data": "digits_data"}
    names |= {"network": "digits_network", "training": "digits_training", "files": "digit_files"}
    return SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})


def render(digits, seed, n=60, **style):
    atlas = digits.atlas.glyph_atlas(CLASSES, FACES)
    labels = np.arange(n, dtype=np.int64) % CLASSES
    rng = np.random.default_rng(seed)
    return digits.rendering.render_glyphs(atlas, labels, digits.rendering.GlyphStyle(**style), rng)


def trained(digits, seed=0, lines=None):
    model = digits.network.build(**TINY_NETWORK)
    report = (lambda _: None) if lines is None else lines.append
    digits.training.train(model, seed=seed, report=report, **TINY_TRAINING)
    return model


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class TestGlyphs:
    def test_there_are_hundreds_of_letters_and_no_digit(self, digits):
        letters = digits.atlas.distinct_letters()
        assert len(letters) >= digits.data.GLYPH_CLASSES >= 500
        assert list(letters) == sorted(set(letters))
        assert all(chr(c).isalpha() for c in letters)
        assert ord("A") in letters
        assert ord("\N{GREEK CAPITAL LETTER ALPHA}") not in letters  # the same shape as A
        assert not {ord(c) for c in "0123456789"} & set(letters)

    def test_atlas_has_the_classes_asked_for_and_a_picture_of_each(self, digits):
        atlas = digits.atlas.glyph_atlas(CLASSES, FACES)
        assert atlas.n_classes == CLASSES
        pictures = np.diff(atlas.first)
        assert pictures.min() >= 1
        assert pictures.max() <= FACES
        assert len(atlas.fields) == atlas.first[-1]
        ink = (atlas.fields > 0).sum(axis=(1, 2))
        assert (ink > 0).all()
        assert (atlas.fields[:, 0] < 0).all()  # the border is paper

    @pytest.mark.parametrize(("classes", "faces"), [(1, 1), (10**6, 1), (5, 0), (5, 99)])
    def test_impossible_atlas_is_refused_with_the_limits(self, digits, classes, faces):
        with pytest.raises(ValueError, match=r"must lie in .*, got"):
            digits.atlas.glyph_atlas(classes, faces)

    def test_pictures_are_counts_of_sixteen(self, digits):
        pictures = render(digits, 0)
        assert pictures.shape == (60, 8, 8)
        assert pictures.dtype == np.uint8
        assert pictures.max() == 16
        assert (pictures.sum(axis=(1, 2)) > 0).all()

    def test_pictures_follow_the_seed_alone(self, digits):
        assert np.array_equal(render(digits, 5), render(digits, 5))
        assert not np.array_equal(render(digits, 5), render(digits, 6))

    def test_style_zero_draws_the_letter_as_it_stands(self, digits):
        still = dict.fromkeys(("rotation_degrees", "shear", "stretch", "shift_pixels", "bend_pixels"), 0.0)
        pen = 0.13  # many distances are 0 up to rounding; none is -0.13
        style = digits.rendering.GlyphStyle(**still, thin_pixels=-pen, thick_pixels=pen)
        atlas = digits.atlas.glyph_atlas(CLASSES, 1)
        labels = np.arange(CLASSES, dtype=np.int64)
        drawn = digits.rendering.render_glyphs(atlas, labels, style, np.random.default_rng(0))
        bitmap = slice(digits.atlas.MARGIN, digits.atlas.MARGIN + digits.atlas.BITMAP)
        assert np.array_equal(drawn, digits.rendering.block_counts(atlas.fields[:, bitmap, bitmap] > -pen))

    def test_thicker_pen_never_loses_ink(self, digits):
        thin = render(digits, 3, thin_pixels=0.0, thick_pixels=0.0)
        thick = render(digits, 3, thin_pixels=-1.0, thick_pixels=1.0)  # the edge moves out by exactly 1
        assert (thick >= thin).all()
        assert thick.sum() > thin.sum()

    def test_block_counts_equal_the_naive_twin(self, digits):
        bitmaps = np.random.default_rng(0).random((7, 32, 32)) < 0.4
        naive = np.zeros((7, 8, 8), dtype=int)
        for i, row, column in zip(*np.nonzero(bitmaps), strict=True):
            naive[i, row // 4, column // 4] += 1
        assert np.array_equal(digits.rendering.block_counts(bitmaps), naive)


class TestDomains:
    def test_split_is_disjoint_complete_and_stratified(self, digits):
        train, test = digits.data.target_train(seed=0), digits.data.target_test(seed=0)
        assert (len(train.labels), len(test.labels)) == (300, 1497)
        everything = load_digits()
        pictures = np.concatenate([train.inputs[:, 0].numpy(), test.inputs[:, 0].numpy()]) * 16
        together = sorted(
            zip(pictures.reshape(-1, 64).tolist(), train.labels.tolist() + test.labels.tolist(), strict=True)
        )
        assert together == sorted(zip(everything.data.tolist(), everything.target.tolist(), strict=True))
        shares = torch.bincount(train.labels) / 300 - torch.from_numpy(np.bincount(everything.target) / 1797)
        assert shares.abs().max() <= 1 / 300

    def test_validation_is_neither_training_nor_the_smaller_test_and_leaves_the_default_test_alone(self, digits):
        def pictures(batches):
            return sorted(batches.inputs.flatten(1).tolist())

        chosen, judged = digits.data.target_validation(seed=1), digits.data.target_test(seed=1, validation=300)
        assert (len(chosen.labels), len(judged.labels)) == (300, 1197)
        assert pictures(digits.data.target_test(seed=1)) == sorted(pictures(chosen) + pictures(judged))
        assert not torch.equal(chosen.inputs, digits.data.target_validation(seed=2).inputs)
        assert (torch.bincount(chosen.labels, minlength=10) >= 25).all()

    def test_seeds_have_different_digits_of_mnist(self, digits, monkeypatch):
        labels = np.repeat(np.arange(10), 50)
        pixels = np.zeros((500, 28, 28), np.float32)
        pixels[:, 10:14, 10:14] = (np.arange(500) / 500)[:, None, None]
        monkeypatch.setattr(digits.data, "mnist_sample", lambda: digits.files.Pictures(pixels, labels))
        seen = []
        for seed in range(5):
            halves = [
                digits.data.target_train(seed=seed, digits="mnist", samples=30),
                digits.data.target_test(seed=seed, digits="mnist", samples=30),
            ]
            assert [torch.bincount(half.labels).tolist() for half in halves] == [[3] * 10, [7] * 10]
            seen += [tuple(row) for half in halves for row in half.inputs.flatten(1).tolist()]
        assert len(set(seen)) == 500
        with pytest.raises(ValueError, match="parts for the seeds 0 to 4, got seed 5"):
            digits.data.target_train(seed=5, digits="mnist")
        with pytest.raises(ValueError, match="must be 'sklearn' or 'mnist', got 'usps'"):
            digits.data.target_train(seed=0, digits="usps")

    def test_split_follows_the_seed(self, digits):
        same, again, other = (digits.data.target_train(seed=s) for s in (1, 1, 2))
        assert torch.equal(same.inputs, again.inputs)
        assert not torch.equal(same.inputs, other.inputs)

    def test_batches_start_again_and_keep_their_order(self, digits):
        batches = digits.data.source(seed=0, samples=130, batch_size=50, classes=CLASSES, faces=FACES)
        first, second = list(batches), list(batches)
        assert [len(labels) for _, labels in first] == [50, 50, 30]
        assert len(batches) == 3
        for (inputs, labels), (inputs_again, labels_again) in zip(first, second, strict=True):
            assert torch.equal(inputs, inputs_again)
            assert torch.equal(labels, labels_again)
            assert inputs.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert inputs.shape[1:] == (1, 8, 8)
            assert inputs.min() >= 0
            assert inputs.max() <= 1
        assert set(torch.cat([labels for _, labels in first]).tolist()) == set(range(CLASSES))

    def test_each_use_of_the_source_has_pictures_of_its_own(self, digits):
        drawn = [
            digits.data.source_glyphs(use, 0, 40, classes=CLASSES, faces=FACES, batch_size=40).inputs
            for use in digits.data.SourceUse
        ]
        assert not torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[1], drawn[2])

    def test_batch_size_zero_is_refused(self, digits):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            digits.data.target_train(seed=0, batch_size=0)


class TestNetworkAndTraining:
    def test_network_is_traceable_and_has_its_layers(self, digits):
        model = digits.network.build(**TINY_NETWORK).eval()
        pictures = digits.data.target_train(seed=0).inputs[:5]
        traced = fx.symbolic_trace(model)
        assert torch.equal(traced(pictures), model(pictures))
        targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert [t for t in targets if t.startswith("fc")] == ["fc6", "fc7", "fc8"]
        assert model(pictures).shape == (5, 10)

    def test_default_network_has_wide_layers(self, digits):
        model = digits.network.build()
        assert 512 <= model.fc6.out_features <= 1024
        assert 512 <= model.fc7.out_features <= 1024

    def test_build_gives_the_same_weights_and_leaves_the_random_state(self, digits):
        before = torch.get_rng_state()
        one, two = digits.network.build(**TINY_NETWORK), digits.network.build(**TINY_NETWORK)
        assert states_equal(one, two)
        assert torch.equal(torch.get_rng_state(), before)

    def test_training_learns_and_leaves_the_random_state(self, digits):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the state guarded
        lines = []
        model = trained(digits, lines=lines)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        assert not model.training
        chance = 0.1
        test = digits.data.target_test(seed=0, samples=TINY_TRAINING["target_samples"])
        assert digits.training.accuracy(model, test) > 5 * chance
        assert sum(line.startswith("source epoch") for line in lines) == TINY_TRAINING["source_epochs"]
        assert lines[-1].startswith("target epoch 30/30")

    def test_training_follows_the_seed_and_not_the_model_given(self, digits):
        one, two, other = trained(digits), trained(digits), trained(digits, seed=1)
        assert states_equal(one, two)
        assert not states_equal(one, other)

    def test_fine_tuning_freezes_the_features(self, digits):
        model = digits.network.build(**TINY_NETWORK)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        schedule = digits.training.Schedule(epochs=2, learning_rate=0.02)
        digits.training.fine_tune(model, digits.data.target_train(seed=0), schedule, lambda _: None)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {f"{layer}.{part}" for layer in ("fc6", "fc7", "fc8") for part in ("weight", "bias")}
        assert not any(p.requires_grad for p in model.features.parameters())

    def test_source_training_leaves_the_classifier(self, digits):
        model = digits.network.build(**TINY_NETWORK)
        classifier, weight = model.fc8, model.fc8.weight.clone()
        glyphs = digits.data.source_glyphs(
            digits.data.SourceUse.TRAINING, 0, 100, classes=CLASSES, faces=FACES, batch_size=50
        )
        schedule = digits.training.Schedule(epochs=1, learning_rate=1e-3)
        with torch.random.fork_rng(devices=[]):
            digits.training.train_on_source(model, glyphs, glyphs, schedule, lambda _: None)
        assert model.fc8 is classifier
        assert torch.equal(classifier.weight, weight)

    def test_foreign_model_is_refused(self, digits):
        with pytest.raises(TypeError, match=r"must be a GlyphNetwork .*, got Linear"):
            digits.training.train(torch.nn.Linear(2, 2), seed=0, report=print)

    @pytest.mark.parametrize(("epochs", "learning_rate"), [(0, 0.1), (1, 0.0)])
    def test_empty_schedule_is_refused(self, digits, epochs, learning_rate):
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            digits.training.Schedule(epochs, learning_rate)
