"""A dry run looks at everything, says what would be done, and writes nothing."""

import re
from types import SimpleNamespace

import pytest
from commands import cli

from dalr_stream.engine.estimate import require_disk
from dalr_stream.errors import ConfigError, DalrStreamError, DiskSpaceError, MemoryLimitError
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.plan import plan
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project


def opened(file, *overrides):
    return Project(load_config(file, overrides), file.parent)


def without_bytecode(found):
    return {name: data for name, data in found.items() if "__pycache__" not in name}


def test_it_loads_a_batch_of_everything_and_writes_nothing(run_file, contents):
    before = contents(run_file.parent)
    found = dry_run(opened(run_file))
    found.require()
    assert without_bytecode(contents(run_file.parent)) == before
    assert [(facts.key, facts.samples, facts.batches) for facts in found.loaders] == [
        ("domains.target", 96, 3),
        ("domains.source", 150, 3),
        ("domains.test", 80, 1),
        ("evaluate", 80, 1),
    ]
    assert found.loaders[0].first == "32 x 12 float32"
    assert found.network == "Tiny, 411 parameters"
    assert found.plan is not None
    assert {layer.name: layer.rows for layer in found.plan.layers} == {"fc1": 326, "fc2": 326, "fc3": 326}


def test_it_plans_as_estimate_does_for_the_trained_network(finished_file):
    assert dry_run(opened(finished_file)).plan == opened(finished_file).estimate()


def test_it_says_which_steps_would_run(run_file):
    steps = dry_run(opened(run_file)).steps
    names = ["train", *(f"{verb} {d}" for verb in ("capture", "accumulate") for d in ("target", "source", "test"))]
    assert steps == [(name, True) for name in [*names, "solve", "compress", "evaluate", "report"]]
    direct = dry_run(opened(run_file, "capture.keep_activations=false", "compress={}")).steps
    assert [name for name, _ in direct if name.startswith(("capture", "compress"))] == []


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("run.caveats=[]", ["report"]),
        ("evaluate.cache=1GiB", ["report"]),
        ("evaluate.ranks=[2]", ["evaluate", "report"]),
        ("solve.ridge=0.1", ["solve", "compress", "evaluate", "report"]),
        (
            "domains.target.options={samples=80}",
            ["capture target", "accumulate target", "solve", "compress", "evaluate", "report"],
        ),
    ],
)
def test_it_says_what_a_change_would_do_again(finished_file, override, again):
    assert [name for name, done in dry_run(opened(finished_file, override)).steps if done] == again


def test_nothing_would_run_of_a_run_that_is_done(finished_file):
    assert not any(done for _, done in dry_run(opened(finished_file)).steps)


def test_every_problem_is_named_at_once(run_file):
    found = dry_run(
        opened(
            run_file,
            "domains.source.batches=tiny_run:empty",
            "domains.test.batches=tiny_run:nothing",
            "network.start=published.safetensors",
            "report.published=paper.toml",
        )
    )
    assert len(found.problems) == 5
    with pytest.raises(ConfigError, match="5 problems; nothing was written") as caught:
        found.require()
    for said in ("'tiny_run:empty' gives no batch", "no function 'nothing'", "'tiny_run:train' takes no 'start'"):
        assert said in str(caught.value)
    assert f"network.start: there is no file '{run_file.parent / 'published.safetensors'}'" in str(caught.value)
    assert f"report.published: there is no file '{run_file.parent / 'paper.toml'}'" in str(caught.value)


@pytest.mark.parametrize(("rows", "needed"), [(2000, "46 MiB"), (2**20, "4.1 GiB")])
def test_disk_is_told_in_units_that_show_it(monkeypatch, tmp_path, rows, needed):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    found = plan([LayerLoad("fc", 1000, rows)], threads=1, heldout_share=0.0)
    with pytest.raises(
        DiskSpaceError, match=f"may need {needed} of disk and 3 MiB are free: free some, choose another"
    ):
        require_disk(found, tmp_path)


def test_a_run_that_would_not_fit_is_a_problem(run_file):
    folding, solving, *steps = dry_run(opened(run_file, 'accumulate.memory_limit="1KiB"')).problems
    assert "folding 16 features needs" in folding
    assert "solving 16 x 12 by" in solving
    named = [step.partition("'")[2].partition("'")[0] for step in steps]
    assert named == ["structure proof", "capture", "compress", "evaluate"]
    assert all("the limit is 0 MiB" in problem and "or raise the limit" in problem for problem in (folding, *steps))


METRICS = """

def without_labels(*, seed):
    return [inputs for inputs, _ in validation(seed=seed)]


def with_labels_among_them(*, seed):
    return [{"x": inputs, "labels": labels} for inputs, labels in validation(seed=seed)]


def perplexity(model, batches):
    assert len(batches) == 1
    return 7.5


def wrong_member(model, batches):
    return sum(model(inputs).logits.sum() for inputs, labels in batches)
"""

BAD_PYTHON = [
    ("network.options.widht=3", "network.options: 'tiny_run:build' takes no 'widht'; it takes 'width'"),
    ("network.train_options.stpes=3", "takes no 'stpes'; it takes 'model', 'seed', 'report', 'steps'"),
    ("domains.source.batches=tiny_run:no_seed", "domains.source.options: 'tiny_run:no_seed' takes no 'seed'"),
    (
        "domains.source.batches=tiny_run:nothing_returned",
        "iterated again, such as a list or a DataLoader, got a NoneType",
    ),
    ("domains.source.batches=tiny_run:once", "domains.source.batches: 'tiny_run:once' must return batches"),
    ("domains.source.batches=tiny_run:wrong_shape", "domain 'source', batch 0: the network refuses 4 x 11 float32: "),
    ("domains.target.batches=tiny_run:wrong_shape", "domain 'target', batch 0: the network refuses 4 x 11 float32: "),
    ("domains.source.batches=tiny_run:wrong_keys", "refuses y 4 x 12 float32: TypeError: "),
    (
        "finetune={batches='tiny_run:validation', loss='tiny_run:of_the_model_alone'}",
        "finetune.loss: 'tiny_run:of_the_model_alone' does not fit (too many positional arguments); it takes 'model'",
    ),
    (
        "evaluate={batches='tiny_run:test', higher=true, metric='tiny_run:of_the_model_alone'}",
        "evaluate.metric: 'tiny_run:of_the_model_alone' does not fit",
    ),
]


@pytest.mark.parametrize(("override", "said"), BAD_PYTHON)
def test_python_that_does_not_fit_the_run_file_is_one_clear_line(run_file, override, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        dry_run(opened(run_file, override)).require()
    with pytest.raises(DalrStreamError, match=re.escape(said)):
        Run(opened(run_file, override)).all()


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("perplexity", r"evaluate\.metric: 'tiny_run:perplexity' gave 7\.5, which must be 0\.\.1: state its range"),
        (
            "wrong_member",
            r"'tiny_run:wrong_member' fails on the first batch of 'tiny_run:test' alone: AttributeError: .*logits",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_found_before_hours_of_streaming(run_file, metric, said):
    with (run_file.parent / "tiny_run.py").open("a") as code:
        code.write(METRICS)
    section = f"evaluate={{batches='tiny_run:test', higher=false, metric='tiny_run:{metric}'}}"
    with pytest.raises(ConfigError, match=said):
        dry_run(opened(run_file, section)).require()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("finetune={batches='tiny_run:without_labels', loss='outputs'}", ""),
        ("finetune={batches='tiny_run:with_labels_among_them'}", ""),
        ("finetune={batches='tiny_run:without_labels'}", r"finetune\.batches: must give .* or set loss = \"outputs\""),
        (
            "evaluate={batches='tiny_run:without_labels'}",
            r"evaluate\.batches: must give .* or name a metric of your own",
        ),
    ],
)
def test_labels_are_asked_for_where_they_are_needed(run_file, section, said):
    with (run_file.parent / "tiny_run.py").open("a") as code:
        code.write(METRICS)
    problems = "\n".join(dry_run(opened(run_file, section)).problems)
    assert re.fullmatch(f".*{said}.*" if said else "", problems)


def test_an_output_that_is_a_file_is_refused(run_file):
    (run_file.parent / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output: '.*taken' is a file: name a folder"):
        opened(run_file, "run.output=taken")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("compress.fc1.size=13", r"compress\.fc1\.size: the layer's rank must lie in 1\.\.12, got 13"),
        ("compress.fc2.size=11", r"compress\.fc2\.size: the layer's number of kept nodes must lie in 1\.\.10, got 11"),
        ("compress.fc3={method='svd', size=1}", r"compress\.fc3: is not among the compressed layers fc1, fc2"),
        ("report.published=paper.toml", r"report\.published: there is no file"),
        (
            "solve.ridge=shards",
            r"solve\.ridge: 'shards' needs at least two shards of the target: set accumulate\.shards",
        ),
        ("solve={source='source', ridge='heldout'}", r"solve\.ridge: 'heldout' needs held-out rows"),
        ("accumulate.device=cuda:77", r"accumulate\.device: device 'cuda:77' does not exist"),
    ],
)
def test_what_only_the_last_steps_would_find_is_found_before_anything_is_captured(run_file, override, said):
    project = opened(run_file, override, "accumulate.heldout_share=0")
    with pytest.raises(ConfigError, match=said):
        dry_run(project).require()
    run = Run(project)
    run.train()
    with pytest.raises(ConfigError, match=said):
        run.accumulate()
    assert not project.store.exists()


def test_the_command_line_prints_it_and_fails_where_something_is_missing(run_file):
    done = cli("run", run_file, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "network: Tiny, 411 parameters" in done.stdout
    assert "at most 96" in done.stdout
    assert "would run" in done.stdout
    assert not (run_file.parent / "out").exists()
    wrong = cli("run", run_file, "--dry-run", "--set", "domains.source.batches=tiny_run:empty")
    assert wrong.returncode == 1
    assert "1 problem; nothing was written" in wrong.stderr


def test_every_step_of_the_run_has_its_memory_in_the_estimate_too(run_file):
    plain = dry_run(opened(run_file)).cost
    named = [step.step for step in plain.memory]
    assert named == ["structure proof", "capture", "accumulate", "solve", "compress", "evaluate", "report"]
    assert all(step.peak_bytes > 0 and step.what for step in plain.memory)
    more = [
        "finetune.batches='tiny_run:target'",
        "capture.keep_activations=false",
        "compress={ratio=0.5, method='svd', order='sequential'}",
        "solve.methods=['svd']",
    ]
    other = dry_run(opened(run_file, *more)).cost
    named = [step.step for step in other.memory]
    assert named == ["accumulate", "solve", "compress", "compress in turn", "finetune", "evaluate", "report"]
    shown = cli("estimate", run_file, *[part for override in more for part in ("--set", override)])
    assert shown.returncode == 0, shown.stderr
    assert "layer after layer: 2 passes at most; a pass peaks at" in shown.stdout
    for words in (*named, "peak memory of solving", "16 x 12"):
        assert words in shown.stdout


def test_steps_above_the_limit_are_marked_and_refused_with_what_would_take_less(run_file):
    finetune = "finetune.batches='tiny_run:big'"
    shown = cli("estimate", run_file, "--memory", "30MiB", "--set", finetune)
    assert "as it is kept, over the limit" in " ".join(shown.stdout.split())
    assert shown.returncode == 1
    assert "step 'finetune': " in shown.stderr
    assert "smaller batches (finetune.options); leave [finetune] out; or raise the limit" in shown.stderr


def test_the_cache_of_scores_takes_a_share_of_the_limit_at_most(run_file):
    project = opened(run_file, "accumulate.memory_limit=20MiB")
    assert project.cache_of(project.evaluate_section) == 5 * 2**20
    project = opened(run_file, "accumulate.memory_limit=20MiB", "evaluate.cache=1MiB")
    assert project.cache_of(project.evaluate_section) == 2**20


TOO_BIG = ("finetune.batches='tiny_run:big'", "accumulate.memory_limit=30MiB")


def test_a_step_that_does_not_fit_is_refused_before_anything_is_recorded(run_file):
    run = Run(opened(run_file, *TOO_BIG))
    with pytest.raises(MemoryLimitError, match=r"step 'finetune': .* the limit is 30 MiB: smaller batches"):
        run.all()
    assert not run.project.store.exists()


def test_a_step_by_itself_is_refused_too(finished_file):
    run = Run(opened(finished_file, *TOO_BIG))
    with pytest.raises(MemoryLimitError, match="step 'finetune'"):
        run.finetune()
    assert not run.project.finetuned.exists()
