"""`estimate` of a run file or a configuration alone: no data is loaded, no weight drawn, and the plan is the run's."""

import json
import re

import pytest
from tiny_run_file import write_run
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.errors import ConfigError
from dalr_stream.workflow.run_cost import cost_of

STATED = ("--samples", "90", "--shape", "30,12")
RATES = ("--rate", "forward=1e9", "--rate", "sums=1e9")
DIRECT = ("--set", "capture.keep_activations=false")


def estimated(*words):
    done = CliRunner().invoke(app, ["estimate", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def file(tmp_path):
    """A run file whose data cannot be loaded."""
    file = write_run(tmp_path / "run")
    python = next(path for path in file.parent.glob("*.py"))
    python.write_text(
        re.sub(r"def _batches\(.*?\):", r"\g<0>\n    raise OSError('there are no data')", python.read_text())
    )
    return file


def test_no_data_are_loaded(file):
    facts = json.loads(estimated(file, *STATED, *RATES, "--json").stdout)
    assert {layer["name"]: layer["features"] for layer in facts["layers"]}.items() >= {"fc1": 12, "fc2": 16}.items()
    assert {layer["rows"] for layer in facts["layers"]} == {270}  # of three domains
    assert facts["time"]["basis"][0].endswith("(as stated)")
    with pytest.raises(OSError, match="there are no data"):
        estimated(file)


def test_the_plan_is_that_of_the_data(tmp_path):
    file = write_run(tmp_path / "run")
    sizes = [f"domains.{domain}.options={{samples=90,batch_size=30}}" for domain in ("source", "target", "test")]
    keys = [
        *sizes,
        'domains.test.batches="tiny_run:target"',
        'compress.fc1={method="svd",size=4}',
        'compress.fc2={method="svd",size=4}',
    ]
    few = [part for key in [*keys, 'solve.methods=["svd"]'] for part in ("--set", key)]
    by_data = json.loads(estimated(file, *few, *RATES, "--json").stdout)
    without = json.loads(estimated(file, *few, *STATED, *RATES, "--json").stdout)
    assert without["layers"] == by_data["layers"]
    assert without["time"]["sums_seconds"] == by_data["time"]["sums_seconds"]


def test_ranks_and_a_bucket_are_said_layer_by_layer(file):
    ranked = [*STATED, *RATES, *DIRECT, "--ranks", 4, "--set", 'run.store="s3://none/x.zarr"']
    shown = estimated(file, *ranked, "--set", "accumulate.segment_batches=2").stdout
    assert re.search(r"layer +sums +sent +puts +put +gets +got +small", shown)
    assert "the store itself" in shown
    assert "capture and accumulate on 4 ranks: about" in shown
    assert re.search(r"4 ranks: about .* at each join rank 0 receives", shown.replace("\n", " "))
    assert "not in it: solving" in shown.replace("\n", " ")
    without = estimated(file, *ranked).stdout.replace("\n", " ")
    assert re.search(r"in strips: .*a rank needs .* and receives .* of rows", without)  # they share the sums


def test_a_bucket_s_requests_are_in_a_plain_estimate_too(tmp_path):
    pytest.importorskip("obstore")
    run = ds.Run.open(write_run(tmp_path / "run"), set=['run.store="memory://none/x.zarr"'])
    cost = cost_of(run.project, run.project.recorded_stand_in())
    assert any(re.match(r"memory://none/x.zarr: bucket: \d+ puts", line) for line in cost.lines)
    assert cost.facts()["time"]["requests"]["puts"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "90"), "state all of a batch and how many samples"),
        (("--shape", "30,12"), "state all of a batch and how many samples"),
        ((*STATED, "--tokens", "3,4"), "state all of a batch and how many samples"),
        (("--samples", "90", "--shape", "12"), "a batch's shape begins with its samples, .* got '12'"),
        (("--samples", "90", "--shape", "a,12"), "got 'a,12'"),
        (("--samples", "90", "--shape", "0,12"), "got '0,12'"),
        ((*STATED, "--rate", "speed=3"), "--rate: must name one of forward, sums, link, bucket, request"),
        ((*STATED, "--rate", "sums=fast"), "--rate: must read like forward=4e14, got 'sums=fast'"),
        ((*STATED, "--rate", "sums=0"), "rates: sums must be above 0"),
        (("--samples", "90", "--shape", "30,13"), "network: a forward pass without numbers fails"),
    ],
)
def test_what_is_stated_wrongly_is_one_line(file, words, message):
    done = CliRunner().invoke(app, ["estimate", str(file), *words])
    assert isinstance(done.exception, ds.DalrStreamError | SystemExit)
    said = str(done.exception) if isinstance(done.exception, ds.DalrStreamError) else done.output
    assert re.search(message, said.replace("\n", " "))


@pytest.mark.parametrize("raised", ["AttributeError", "AssertionError", "ZeroDivisionError"])
def test_whatever_a_network_raises_at_a_batch_is_one_line(file, raised):
    python = next(path for path in file.parent.glob("*.py"))
    lines = ["", "class Fails(nn.Sequential):", "    def forward(self, x):", f"        raise {raised}('no')", ""]
    python.write_text(
        python.read_text() + "\n".join([*lines, "def fails():", "    return Fails(nn.Linear(12, 2))", ""])
    )
    words = (f'network.build="{python.stem}:fails"', "network.options={}", 'network.layers=["0"]')
    with pytest.raises(ds.errors.InvalidInputError, match=rf"a forward pass without numbers fails \({raised}: no\)"):
        estimated(file, *STATED, *[word for key in words for word in ("--set", key)])


def test_a_network_that_is_built_of_numbers_is_one_line(file):
    python = next(path for path in file.parent.glob("*.py"))
    python.write_text(python.read_text() + "\n\ndef numbers():\n    return nn.Linear(int(torch.ones(1).item()), 2)\n")
    with pytest.raises(
        ConfigError, match=r"'.*:numbers' cannot be built without numbers \(RuntimeError: .*config\.json"
    ):
        estimated(file, *STATED, "--set", f'network.build="{python.stem}:numbers"', "--set", "network.options={}")


class TestTransformers:
    @pytest.fixture
    def folder(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=50, architectures=["LlamaForCausalLM"],
        )  # fmt: skip
        config.save_pretrained(tmp_path / "llama")
        return tmp_path / "llama"

    def test_a_configuration_is_enough(self, folder):
        for named in (folder, folder / "config.json"):
            found = estimated(named, "--tokens", "4,16", "--samples", 8, *RATES, "--json")
            facts = json.loads(found.stdout)
            features = {layer["name"]: layer["features"] for layer in facts["layers"]}
            assert features["model.layers.1.mlp.down_proj"] == 64
            assert "model.layers.1.self_attn.k_proj" not in features  # reads what q_proj reads
            assert {layer["rows"] for layer in facts["layers"]} == {8 * 16}
        assert list(folder.iterdir()) == [folder / "config.json"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"model_type": "bert",', r"\(OSError: .*not a valid JSON"),
            ("{}", r"\(ValueError: .*model_type"),
            ('{"model_type": "nonesuch"}', r"\(ValueError: .*nonesuch"),
            ('{"model_type": "bert", "hidden_size": 15}', r"\(ValueError: The hidden size \(15\)"),
            ('{"model_type": "bert", "hidden_size": "x"}', r"expected int, got str"),
        ],
    )
    def test_a_configuration_that_transformers_cannot_read_is_one_line(self, tmp_path, text, reason):
        pytest.importorskip("transformers")
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=f"transformers cannot build .*config.json.*{reason}") as caught:
            estimated(tmp_path / "config.json", "--tokens", "4,16", "--samples", 8)
        assert "\n" not in str(caught.value)

    def test_a_configuration_without_what_data_there_will_be_is_no_run_file(self, folder):
        with pytest.raises(ConfigError, match=r"is not valid TOML: .*; of a network of transformers.*--samples N"):
            estimated(folder / "config.json")

    def test_run_keys_hold_for_it(self, folder):
        more = ("--set", "capture.most_per_sample=4", "--set", 'network.layers=["*.down_proj"]')
        facts = json.loads(estimated(folder, "--tokens", "4,16", "--samples", 8, *RATES, *more, "--json").stdout)
        assert [layer["rows"] for layer in facts["layers"]] == [32, 32]

    def test_block_by_block(self, folder):
        blocks = ("--set", "network.blocks=true", "--set", "capture.keep_activations=false")
        words = (folder, "--tokens", "4,16", "--samples", 8, *RATES, "--json")
        whole, apart = (json.loads(estimated(*words, *more).stdout) for more in (blocks[2:], blocks))
        assert [layer["name"] for layer in apart["layers"]] == [layer["name"] for layer in whole["layers"]]
        assert apart["disk_bytes"] == whole["disk_bytes"]
        assert apart["peak_bytes"]["accumulate"] < whole["peak_bytes"]["accumulate"]
        assert apart["time"]["passes_seconds"] == whole["time"]["passes_seconds"]  # each block once
