"""The BERT pipeline: its texts and masks, and a tiny BERT through the run file, trained here or from a local folder."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, FingerprintMismatchError
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.evaluate import Evaluation

BERT_FOLDER = Path(__file__).parents[2] / "pipelines" / "bert"
MODULES = {"text": "bert_text", "data": "bert_data", "network": "bert_network", "training": "bert_training"}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
LAYERS = [
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.0.attention.self.key",
    "bert.encoder.layer.0.attention.self.value",
    "bert.encoder.layer.0.attention.output.dense",
    "bert.encoder.layer.0.intermediate.dense",
    "bert.encoder.layer.0.output.dense",
]
TINY_RUN = [
    "network.train_options={source_samples = 200, source_epochs = 1, target_samples = 200, target_epochs = 1}",
    "domains.target.options={samples = 200}",
    "domains.source.options={samples = 100}",
    "domains.test.options={samples = 100}",
    "evaluate.options={samples = 100}",
    "evaluate.ranks=[2, 4]",
    'solve.methods=["svd", "dalr_anchored_affine"]',
]


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the pipeline with a tiny configuration."""
    place = tmp_path_factory.mktemp("copy") / "pipelines" / "bert"
    shutil.copytree(BERT_FOLDER, place, ignore=shutil.ignore_patterns("__pycache__"))
    plain = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**plain, **TINY}))
    yield place
    for name in MODULES.values():
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def bert(folder):
    """The modules of the pipeline, found as a run file finds them: with their folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield SimpleNamespace(**{short: importlib.import_module(name) for short, name in MODULES.items()})


def opened(folder, *overrides):
    return Run(Project(load_config(folder / "run.toml", [*TINY_RUN, *overrides]), folder))


@pytest.fixture(scope="module")
def finished(folder, bert):  # noqa: ARG001 - the modules stay on the path
    run = opened(folder)
    run.all()
    return run


class TestTexts:
    def test_topics_are_the_classes_of_the_configuration(self, bert):
        plain = json.loads((BERT_FOLDER / "config.json").read_text())
        assert list(bert.text.TOPICS) == list(plain["label2id"]) == list(plain["id2label"].values())

    def test_every_topic_has_code_and_prose(self, bert):
        for texts in (bert.text.statements(0), bert.text.sentences(0, test=False), bert.text.sentences(0, test=True)):
            topics = [text.topic for text in texts]
            assert min(topics.count(topic) for topic in range(len(bert.text.TOPICS))) > 100

    def test_no_sentence_lies_on_both_sides_and_all_on_one(self, bert):
        train, test = ({text.words for text in bert.text.sentences(3, test=side)} for side in (False, True))
        assert not train & test
        assert train | test == {text.words for side in (False, True) for text in bert.text.sentences(4, test=side)}
        assert train != {text.words for text in bert.text.sentences(4, test=False)}

    def test_validation_is_no_part_of_the_test_sentences(self, bert):
        chosen, judged = (
            {tuple(tokens) for tokens in texts.tokens}
            for texts in (
                bert.data.target_validation(seed=0, validation=50),
                bert.data.target_test(seed=0, validation=50, samples=10**6),
            )
        )
        whole = bert.data.target_test(seed=0, samples=10**6)
        assert len(whole.tokens) == len(bert.text.sentences(0, test=True))
        assert chosen | judged == {tuple(tokens) for tokens in whole.tokens}


class TestBatches:
    def test_the_mask_is_where_the_text_is(self, bert):
        texts = bert.data.source(seed=0, samples=25, batch_size=10)
        seen = [
            ids[mask.bool()].tolist()
            for inputs, _ in texts
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        assert seen == [list(tokens) for tokens in texts.tokens]
        assert [len(labels) for _, labels in texts] == [10, 10, 5]
        assert len(texts) == 3
        assert max(map(len, seen)) <= bert.data.MOST_TOKENS

    def test_words_come_back_from_the_tokens(self, bert):
        (text,) = bert.text.sentences(0, test=True)[:1]
        (tokens,) = bert.data.batches([text], 0, 1, None).tokens
        assert bert.data._own(0).decode(list(tokens)).strip().startswith(text.words.lower()[:20])

    def test_the_tokenizer_is_the_same_when_made_again_and_follows_the_configuration(self, bert, folder):
        kept = bert.data._own(0)
        bert.data._trained.cache_clear()
        assert bert.data._own(0).to_str() == kept.to_str()
        plain = json.loads((folder / "config.json").read_text())
        try:
            (folder / "config.json").write_text(json.dumps({**plain, "vocab_size": 300}))
            assert bert.data._own(0).get_vocab_size() == 300
        finally:
            (folder / "config.json").write_text(json.dumps(plain))

    def test_a_tokenizer_of_the_users_own_must_be_there(self, bert):
        with pytest.raises(ConfigError, match=r"no file .*mine\.json"):
            bert.data.source(seed=0, tokenizer="mine.json")


class TestNetwork:
    def test_the_same_weights_at_every_call_and_the_generator_is_left_alone(self, bert):
        state = torch.get_rng_state()
        first, second = bert.network.build(), bert.network.build()
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert type(first).__name__ == "BertForSequenceClassification"

    def test_the_configuration_may_be_a_mapping_or_a_folder(self, bert, tmp_path):
        bert.network.build(
            config={"model_type": "distilbert", "dim": 8, "n_heads": 2, "hidden_dim": 8}
        ).save_pretrained(tmp_path)
        again = bert.network.build(config=str(tmp_path))
        assert type(again).__name__ == "DistilBertForSequenceClassification"
        assert again.config.dim == 8

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ("nowhere.json", "there is no file .*nowhere.json'; nothing is downloaded"),
            ("bert_data.py", "is not JSON"),
            ({"hidden_size": 8}, "model_type None"),
            ({"model_type": "nonsense"}, "model_type 'nonsense'"),
            ({"model_type": "vit"}, "model_type 'vit'"),
        ],
    )
    def test_what_is_no_configuration_is_named(self, bert, config, said):
        with pytest.raises(ConfigError, match=said):
            bert.network.build(config=config)

    def test_without_transformers_the_remedy_is_named(self, bert, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ConfigError, match="transformers is not installed"):
            bert.network.build()


class TestThroughTheRunFile:
    def test_attention_and_ffn_are_compressed_evaluated_and_reported(self, finished):
        found = Results.read(finished.project.report_folder / "results.json")
        assert [layer.name for layer in found.layers] == LAYERS
        for layer in found.layers:
            assert [curve.method for curve in layer.score_curves] == ["svd", "dalr_anchored_affine"]
            assert all(curve.heldout is not None for curve in layer.error_curves)
        before, after = Evaluation.read(finished.project.evaluation).sizes
        assert after.parameters < before.parameters
        assert (finished.project.report_folder / "report.html").exists()

    def test_padding_is_no_row_of_the_moments(self, finished, bert):
        store = StoreView.open(finished.project.store)
        for domain, texts in {
            "target": bert.data.target_train(seed=0, samples=200),
            "source": bert.data.source(seed=0, samples=100),
        }.items():
            positions = sum(map(len, texts.tokens))
            assert {store.all_rows(domain, layer).count for layer in LAYERS} == {positions}

    def test_the_compressed_network_comes_back_from_its_folder(self, finished, bert):
        small = ds.load(finished.project.compressed, build=bert.network.build)
        inputs, labels = next(iter(bert.data.target_test(seed=0, samples=20)))
        with torch.inference_mode():
            scores = small(**inputs).logits
            original = finished.project.network(**inputs).logits
        assert scores.shape == original.shape == (20, len(bert.text.TOPICS))
        assert not torch.equal(scores, original)
        assert len(labels) == 20

    def test_a_folder_of_save_pretrained_takes_the_place_of_training(self, finished, folder, bert):
        finished.project.network.save_pretrained(folder / "my_bert")
        (folder / "mine.toml").write_text(
            (folder / "run.toml").read_text().replace('train = "bert_training:train"', 'weights = "my_bert"')
        )
        overrides = ['run.output="../../runs/mine"', 'network.options={config = "my_bert"}', *TINY_RUN[1:]]
        run = Run(Project(load_config(folder / "mine.toml", overrides), folder))
        run.all()
        trained, local = (Evaluation.read(one.project.evaluation) for one in (finished, run))
        assert local.baseline == trained.baseline
        assert local.curves == trained.curves
        assert [size.parameters for size in local.sizes] == [size.parameters for size in trained.sizes]

        bert.network.build().bert.save_pretrained(folder / "headless")
        broken = [*overrides[2:], 'network.weights="headless"', 'run.output="../../runs/headless"']
        with pytest.raises(FingerprintMismatchError, match=r"missing classifier\.bias"):
            Run(Project(load_config(folder / "mine.toml", broken), folder)).all()

    def test_sizes_of_all_layers_are_searched_on_batches_of_named_inputs(self, finished, folder):
        run = opened(
            folder,
            'network.layers=["bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"]',
            'run.output="../../runs/search"',
            "compress={max_drop = 1.0}",
            'validation={batches = "bert_data:target_validation", options = {validation = 60}, ranks = [2, 4]}',
        )
        shutil.copytree(finished.project.output, run.project.output, ignore=shutil.ignore_patterns("report"))
        run.accumulate()
        run.compress()
        found = json.loads(run.project.compression.read_text())["content"]["content"]
        assert len(found["search"]["steps"]) > 1
        assert run.project.compressed.is_dir()
