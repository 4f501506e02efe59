"""What `dalr-stream init` writes: it runs as it is, to its report, and nothing that exists is overwritten."""

from __future__ import annotations

import shlex
import sys

import pytest
import torch
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.errors import ConfigError
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.starter import write_starter
from dalr_stream.workflow.steps.sizes.compression import Compression


def _forget_modules():
    for name in ("my_network", "my_data"):
        sys.modules.pop(name, None)


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command_that_init_names_can_be_pasted_into_a_shell(tmp_path):
    line = invoke("init", tmp_path / "it's my net").output.splitlines()[-1]
    assert shlex.split(line.removeprefix("Try it:")) == [
        "dalr-stream",
        "run",
        str(tmp_path / "it's my net" / "run.toml"),
    ]


def test_the_plain_starter_runs_to_its_report(tmp_path):
    done = invoke("init", tmp_path / "first")
    assert "Try it:  dalr-stream run" in done.output
    run = Run.open(tmp_path / "first" / "run.toml")
    page = run.all()
    assert page.is_file()
    assert run.results.metric == "agreement"
    found = Compression.read(run.project.compression)
    assert found.choice.trials
    assert run.results.sizes[1].score > 0.9


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What `save_pretrained` writes of a tiny encoder and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sentence", "number", "is", "about", "ships", "birds", "."]
    (folder / "vocab.txt").write_text("\n".join([*words, *(str(number) for number in range(40))]))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    settings = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(settings).save_pretrained(folder)
    return folder


def test_the_starter_of_an_encoder_runs_to_its_report(tmp_path, saved):
    invoke("init", tmp_path / "encoder", "--from-transformers", saved)
    run = Run.open(tmp_path / "encoder" / "run.toml")
    assert run.project.config.network.layers == ("encoder.layer.*",)
    assert run.all().is_file()
    assert 0.0 < run.results.sizes[1].score <= 1.0


def _smallest(kind, **settings):
    """Return a network of transformers of one small block."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(
        transformers, f"{kind.removesuffix('LMHeadModel').removesuffix('ForCausalLM').removesuffix('Model')}Config"
    )
    return getattr(transformers, kind)(config(**settings))


def test_the_starter_of_a_decoder_scores_the_next_token_and_needs_no_tokenizer(tmp_path):
    """`AutoTokenizer` makes an empty tokenizer, without a word, where none was saved: batches of no tokens."""
    settings = {"vocab_size": 60, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
    _smallest("GPT2LMHeadModel", bos_token_id=0, eos_token_id=0, **settings).save_pretrained(tmp_path / "model")
    invoke("init", tmp_path / "decoder", "--from-transformers", tmp_path / "model")
    run = Run.open(tmp_path / "decoder" / "run.toml")
    assert run.project.config.network.layers == ("transformer.h.*",)
    assert run.all().is_file()
    assert run.results.metric == "perplexity"
    assert run.results.baseline_score > 1
    assert Compression.read(run.project.compression).choice.trials


def test_a_decoder_read_block_by_block_is_compressed_as_in_memory(tmp_path):
    settings = {"vocab_size": 60, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 2}
    _smallest("GPT2LMHeadModel", bos_token_id=0, eos_token_id=0, **settings).save_pretrained(tmp_path / "model")
    found = []
    for name, options in (("whole", ()), ("blocks", ("--blocks",))):
        invoke("init", tmp_path / name, "--from-transformers", tmp_path / "model", *options)
        run = Run.open(tmp_path / name / "run.toml", set=['solve.methods=["dalr_anchored_affine"]'])
        assert run.all().is_file()
        state = ds.load(run.project.compressed, run.project.code.build).state_dict()
        numbers = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
        found.append((run.results.baseline_score, run.results.sizes[1].score, numbers))
        assert ("network" in vars(run.project)) == (name == "whole")
        _forget_modules()
    assert found[0] == found[1]


def test_blocks_are_for_decoders_on_disk(saved, tmp_path):
    with pytest.raises(ConfigError, match="is scored against itself, uncompressed and whole, which --blocks does not"):
        write_starter(tmp_path / "new", saved, blocks=True)
    with pytest.raises(ConfigError, match="--blocks reads what save_pretrained wrote: name that by"):
        write_starter(tmp_path / "new", blocks=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTModel", {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}),
        ("LlamaForCausalLM", {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24}),
    ],
)
def test_batches_of_the_starter_are_what_the_network_reads(tmp_path, kind, settings):
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    _smallest(kind, **heads, **settings).save_pretrained(tmp_path / "model")
    write_starter(tmp_path, tmp_path / "model")
    dry_run(Run.open(tmp_path / "run.toml").project).require()


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="transformers is not installed: pip install transformers"):
        write_starter(tmp_path / "new", tmp_path)


def test_networks_that_read_something_else_are_refused_with_the_way_out(tmp_path):
    t5 = {"vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    _smallest("T5Model", **t5).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"reads two sequences.*run `dalr-stream init FOLDER` without"):
        write_starter(tmp_path / "new", tmp_path / "model")
    assert not (tmp_path / "new").exists()


def test_what_exists_is_not_overwritten(tmp_path):
    write_starter(tmp_path)
    mine = tmp_path / "my_data.py"
    mine.write_text("mine")
    (tmp_path / "run.toml").unlink()
    with pytest.raises(ConfigError, match=r"init: '.*my_network\.py' exists and is not overwritten"):
        write_starter(tmp_path)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "run.toml").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config\.json in '.*': name what save_pretrained wrote"):
        write_starter(tmp_path / "new", tmp_path)
    assert not (tmp_path / "new").exists()
