"""[compress] names layers as [network] does: by name or by pattern, each layer once."""

import pytest

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import named_layers
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize


def opened(path, compress):
    text = path.read_text()
    path.write_text(text[: text.index("[compress]")] + f"[compress]\n{compress}\n" + text[text.index("[evaluate]") :])
    return Project(load_config(path), path.parent)


def test_a_pattern_gives_every_layer_it_matches_the_same_choice(finished_file):
    project = opened(finished_file, '"fc*" = { method = "svd", size = 3 }')
    Run(project).compress()
    saved = Compression.read(project.compression).layers
    assert {name: (layer.method.value, layer.size) for name, layer in saved.items()} == {
        "fc1": ("svd", 3),
        "fc2": ("svd", 3),
    }


def test_layers_stand_in_the_network_s_order_whatever_the_run_file_s(finished_file):
    project = opened(finished_file, 'fc2 = { method = "svd", size = 2 }\n"re:fc1" = { method = "svd_bc", size = 3 }')
    assert [(layer, choice.size) for layer, choice in named_layers(project, project.layers).items()] == [
        ("fc1", 3),
        ("fc2", 2),
    ]


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        (
            '"fc*" = { method = "svd", size = 3 }\nfc2 = { method = "svd", size = 2 }',
            r"compress.fc2: .*'fc2' is named by",
        ),
        ('"fd*" = { method = "svd", size = 3 }', r"compress\.fd\*: is not among the compressed layers fc1, fc2"),
    ],
)
def test_a_layer_named_twice_and_a_pattern_for_nothing_are_refused(finished_file, compress, message):
    project = opened(finished_file, compress)
    with pytest.raises(ConfigError, match=message):
        named_layers(project, project.layers)


def test_many_layers_are_named_by_method_and_few_one_by_one():
    svd = {f"fc{number}": LayerSize(Method.SVD, 3 + number) for number in range(4)}
    assert str(Compression("as named", svd)) == "fc0 SVD, 3; fc1 SVD, 4; fc2 SVD, 5; fc3 SVD, 6"
    mixed = svd | {f"fc{number}": LayerSize(Method.SPECTRAL, 2 * number - 1) for number in (4, 5)}
    assert str(Compression("as named", mixed)) == (
        "SVD in 4 of 6 layers, 3 to 6; spectral pruning in 2 of 6 layers, 7 to 9"
    )
    alike = {f"fc{number}": LayerSize(Method.SVD, 40) for number in range(5)}
    assert str(Compression("as named", alike)) == "SVD in 5 of 5 layers, 40"
    assert str(Compression("params 0.5", alike, asked=7)) == "SVD in 5 of 7 layers, 40"
