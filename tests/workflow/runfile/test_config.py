import re

import pytest

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.ridges import RidgeFrom
from dalr_stream.workflow.runfile.values import parse_bytes


def test_defaults_are_filled_in_and_travel(run_file):
    plain = load_config(run_file).plain()
    default = [method for method in Method if not method.weighted and method.family is not Family.HEADS]
    assert plain["solve"]["methods"] == [method.value for method in default]
    assert plain["solve"]["ridge"] == 1e-3
    assert plain["capture"]["keep_activations"] is True
    assert plain["accumulate"]["heldout_share"] == 0.1
    assert plain["evaluate"]["metric"] == "accuracy"


def test_a_set_option_replaces_a_key_with_a_toml_value_or_a_bare_word(run_file):
    config = load_config(run_file, ["solve.ridge=0.5", "run.name=other", 'solve.methods=["svd"]', "compress={}"])
    assert config.solve.ridge_for(Method.DALR_PUBLISHED) == Ridge.relative(0.5)
    assert config.run.name == "other"
    assert config.solve.methods == (Method.SVD,)
    absolute = load_config(run_file, ["solve.ridge_absolute=1000"]).solve
    assert absolute.ridge_for(Method.DALR_PUBLISHED) == Ridge.absolute(1000.0)


def test_absolute_ridges_by_method_leave_the_others_as_they_are(run_file):
    config = load_config(run_file, ["solve.ridge_absolute={ dalr_published = 1000 }", "solve.ridge=0.5"])
    assert config.solve.ridge_for(Method.DALR_PUBLISHED) == Ridge.absolute(1000.0)
    assert config.solve.ridge_for(Method.DALR_ANCHORED_AFFINE) == Ridge.relative(0.5)
    assert config.plain()["solve"]["ridge_absolute"] == {"dalr_published": 1000.0}
    chosen = load_config(run_file, ["solve.ridge_absolute={ dalr_published = 0.0 }", "solve.ridge=heldout"]).solve
    assert chosen.ridge_for(Method.DALR_PUBLISHED) == Ridge.absolute(0.0)
    assert chosen.ridge_for(Method.DALR_ANCHORED_AFFINE) is RidgeFrom.HELDOUT


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{ svd = 1.0 }", "no ridge changes 'svd'"),
        ("{ dalr_published = -1.0 }", "must be >= 0 and finite, got -1.0"),
        ("{ dalr_published = inf }", "must be >= 0 and finite, got inf"),
        ("-1.0", "must be >= 0 and finite"),
        ("{ dalr = 1.0 }", "solve.ridge_absolute"),
    ],
)
def test_absolute_ridges_that_mean_nothing_are_refused(run_file, value, words):
    with pytest.raises(ConfigError, match=words):
        load_config(run_file, [f"solve.ridge_absolute={value}"])


def test_options_are_handed_to_every_factory_and_a_section_s_own_come_first(run_file):
    own = load_config(run_file).plain()
    run_file.write_text('[options]\nshared = "x"\n\n' + run_file.read_text())
    config = load_config(run_file, ["domains.target.options.shared=y"]).plain()
    assert config["network"]["options"] == {"shared": "x"} | own["network"]["options"]
    assert config["domains"]["target"]["options"] == own["domains"]["target"]["options"] | {"shared": "y"}
    assert config["evaluate"]["options"] == {"shared": "x"} | own["evaluate"]["options"]
    assert ("shared" in config["network"]["train_options"]) == (own["network"]["train"] is not None)
    assert load_config(run_file, ["options.shared=z"]).evaluate.options["shared"] == "z"
    assert load_config(run_file, ["finetune.batches=tiny_run:validation"]).finetune.options == {"shared": "x"}


def test_options_that_are_no_table_are_refused(run_file):
    with pytest.raises(ConfigError, match="options: must be a table of what every factory is given, got 3"):
        load_config(run_file, ["options=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solve.rigde=1", r"unknown key 'solve\.rigde'; nearest: 'ridge'"),
        ("sovle.ridge=1", r"unknown key 'sovle'; nearest: 'solve'"),
        ("domains.target.bathces=1", r"unknown key 'domains\.target\.bathces'; nearest: 'batches'"),
        ("compress.fc1.mehtod=1", r"unknown key 'compress\.fc1\.mehtod'; nearest: 'method'"),
        ("solve.ridge=-1", r"solve\.ridge: must be a number >= 0, 'heldout', 'shards' or 'shrinkage', got -1"),
        ("solve.ridge=best", r"solve\.ridge: must be a number >= 0, 'heldout', 'shards' or 'shrinkage', got 'best'"),
        ("solve.restore_ridge=-1", r"solve\.restore_ridge: must be greater than or equal to 0, got -1"),
        ("accumulate.shards=0", r"accumulate\.shards: .* got 0"),
        ('solve.methods=["svdd"]', r"solve\.methods\.0: must be 'svd', 'svd_bc', .*, got 'svdd'"),
        ('solve.target="targt"', r"solve\.target: there is no \[domains\.targt\]; there is 'target'"),
        ("evaluate.ranks=[0]", r"evaluate\.ranks\.0: .* got 0"),
        ('network.build="no_colon"', r"network\.build: must read like module:function, got 'no_colon'"),
        ("network.layers=fc1", r"""network\.layers: must be a list, e\.g\. \["0"\], got 'fc1'"""),
        ("network.layers=[]", r"network\.layers: must not be empty, got \[\]"),
        ("evaluate.metric=f1", r"evaluate\.metric: must be \"accuracy\" or module:function, got 'f1'"),
        ("compress={params='25'}", r"compress\.params: must read like 25% or 0\.25, got '25'"),
        (
            "accumulate.memory_limit=plenty",
            r"accumulate\.memory_limit: must read like 8GiB, 500MB or 1024, got 'plenty'",
        ),
        ('network.weights="w.safetensors"', "one of 'weights' .* and 'train' .*, not both"),
        ("evaluate.cache=plenty", r"evaluate\.cache: must read like 8GiB, 500MB or 1024, got 'plenty'"),
        ("report.publisht=1", r"unknown key 'report\.publisht'; nearest: 'published'"),
        ('compress.fc1.method="momasp_node"', None),
        ('solve.methods=["svd"]', r"compress\.fc1\.method: 'dalr_anchored_affine' is not in solve\.methods: add it"),
        ("compress.fc1.retention=0.9", "exactly one of 'size' and 'retention'"),
        ("accumulate.heldout_share=1.0", r"accumulate\.heldout_share"),
        ("accumulate.precision=half", r"accumulate\.precision.*'double' or 'single'"),
        ("accumulate.device=gpu", r"accumulate\.device"),
        ("no_equals_sign", "--set: must read like"),
        ("run.name.deeper=1", "'name' in 'run.name.deeper' is not a section"),
    ],
)
def test_a_bad_key_or_value_is_named(run_file, override, message):
    if message is None:
        assert load_config(run_file, [override]).compress.layers["fc1"].method is Method.MOMASP_NODE
        return
    with pytest.raises(ConfigError, match=message):
        load_config(run_file, [override])


OLD_KEYS = [
    *(
        (f"{key}={value}", f"'capture.{key}' is now 'accumulate.{key}': move it to [accumulate]")
        for key, value in {
            "heldout_share": 0.2,
            "shards": 8,
            "memory_limit": "'8GiB'",
            "threads": 2,
            "workers": 2,
            "scheduler": "'tcp://host:8786'",
            "precision": "'single'",
            "device": "'cuda'",
        }.items()
    ),
    ("direct=true", "'capture.direct' is now 'capture.keep_activations': set it to false"),
    ("direct=false", "'capture.direct' is now 'capture.keep_activations': set it to true"),
]


@pytest.mark.parametrize(("line", "message"), OLD_KEYS)
def test_an_old_key_is_one_line_that_names_the_new_one(run_file, line, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as overridden:
        load_config(run_file, [f"capture.{line}"])
    run_file.write_text(run_file.read_text() + f"\n[capture]\n{line}\n")
    with pytest.raises(ConfigError) as written:
        load_config(run_file)
    assert str(written.value) == str(overridden.value)
    assert "\n" not in str(written.value)
    run_file.write_text(run_file.read_text().replace("[capture]", "[accumulate]"))
    if "direct" not in line:
        load_config(run_file)


@pytest.mark.parametrize(
    "key", ["run.seed", "solve.ridge", "accumulate.shards", "accumulate.heldout_share", "compress.samples"]
)
def test_true_and_false_are_no_numbers(run_file, key):
    with pytest.raises(ConfigError, match=f"'{key.partition('.')[2]}' is not a switch, got true"):
        load_config(run_file, [f"{key}=true"])
    layer = "compress={ fc1 = { method = 'dalr_anchored_affine', size = false } }"
    with pytest.raises(ConfigError, match=r"compress\.fc1: 'size' is not a switch, got false"):
        load_config(run_file, [layer])
    assert load_config(run_file, ["capture.keep_activations=false", "network.blocks=false"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("classifier.0", 'compress."classifier.0"'),
        ("classifier.0", "compress . 'classifier.0' "),
        ("encoder.*.fc[12]", 'compress."encoder.*.fc[12]"'),
        ("fc[12]", "compress.fc[12]"),
        ("fc*", "compress.fc*"),
        ("fc1", 'compress."fc1"'),
    ],
)
def test_a_layer_on_the_command_line_is_named_as_in_the_file(run_file, name, key):
    layers = load_config(run_file, [key + '={method = "dalr_anchored_affine", size = 3}']).compress.layers
    assert layers[name].size == 3
    assert (
        load_config(run_file, [f"{key}.size=4", f'{key}.method="dalr_anchored_affine"']).compress.layers[name].size == 4
    )


@pytest.mark.parametrize("override", ["accumulate.workers=2", "accumulate.scheduler=tcp://host:8786"])
def test_other_processes_need_activations_on_disk(run_file, override):
    load_config(run_file, [override])
    with pytest.raises(ConfigError, match=r"capture\.keep_activations = false keeps none: leave out"):
        load_config(run_file, [override, "capture.keep_activations=false"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("capture.keep_activations=false", r"capture\.keep_activations = false keeps none"),
        ("compress.order=sequential", r'compress\.order = "sequential" folds what networks compute'),
    ],
)
def test_cupy_folds_nothing_but_rows_on_disk(run_file, override, reason):
    with pytest.raises(ConfigError, match=rf"'cupy' folds rows that lie on disk, and {reason}: let torch fold"):
        load_config(run_file, ["accumulate.device=cupy", override])
    assert load_config(run_file, ["accumulate.device=cupy"]).accumulate.device == "cupy"


def test_a_file_to_start_from_needs_training_and_is_handed_to_it_beside_the_run_file(run_file):
    config = load_config(run_file, ["network.start=pretrained.safetensors", "network.train_options.steps=3"])
    options = Project(config, run_file.parent).code.train_options
    assert options == {"steps": 3, "start": run_file.parent / "pretrained.safetensors"}
    assert Project(load_config(run_file), run_file.parent).code.train_options == {}
    run_file.write_text(run_file.read_text().replace('train = "tiny_run:train"', 'weights = "w.safetensors"'))
    with pytest.raises(ConfigError, match="'start' is what 'train' starts from"):
        load_config(run_file, ["network.start=pretrained.safetensors"])


def test_retention_is_refused_for_a_low_rank_method(run_file):
    text = run_file.read_text().replace('method = "dalr_anchored_affine", size = 4', 'method = "svd", retention = 0.5')
    run_file.write_text(text)
    with pytest.raises(ConfigError, match="'retention' is for selections, 'svd' is a low-rank method"):
        load_config(run_file)


def test_momasp_needs_a_source(run_file):
    run_file.write_text(run_file.read_text().replace('source = "source"', ""))
    with pytest.raises(ConfigError, match=r"compress\.fc2\.method: MoMaSP compares two domains: .*solve\.source"):
        load_config(run_file)
    with pytest.raises(ConfigError, match=r"solve\.source: MoMaSP compares two domains"):
        load_config(run_file, ['solve.methods=["momasp_node"]', "compress={}"])
    assert load_config(run_file, ['solve.methods=["svd"]', "compress={}"]).solve.source is None


def test_a_missing_key_file_or_broken_toml_is_named(run_file, tmp_path):
    with pytest.raises(ConfigError, match="there is no run file"):
        load_config(tmp_path / "absent.toml")
    run_file.write_text(run_file.read_text().replace('name = "tiny"', ""))
    with pytest.raises(ConfigError, match=r"'run\.name' is missing"):
        load_config(run_file)
    run_file.write_text(run_file.read_text().replace("[run]", '[run]\nnmae = "tiny"'))
    with pytest.raises(ConfigError, match=r"unknown key 'run\.nmae'; nearest: 'name'"):
        load_config(run_file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory: name the run file in it"):
        load_config(run_file.parent)
    run_file.write_text("[run")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(run_file)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 8 * 2**30), ("500 MB", 500_000_000), ("1024", 1024), ("1.5KiB", 1536), ("2T", 2 * 10**12)],
)
def test_bytes_are_read_with_their_units(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "many", "8 XB", "-1GiB"])
def test_unreadable_bytes_are_refused(text):
    with pytest.raises(ConfigError, match="must read like 8GiB"):
        parse_bytes(text)
