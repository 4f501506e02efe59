import sys

import pytest

from dalr_stream.errors import ConfigError
from dalr_stream.workflow.runfile.factories import code_digest, resolve


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made_net.py").write_text("import torch\nfrom made_parts import width\n")
    (tmp_path / "made_parts.py").write_text("width = 3\n")
    (tmp_path / "made_other.py").write_text("x = 1\n")
    (tmp_path / "made_package").mkdir()
    (tmp_path / "made_package" / "__init__.py").write_text("def f(): return 'packaged'\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("made_")]:
        del sys.modules[name]


def test_the_digest_covers_what_the_names_reach_and_nothing_else(folder):
    before = code_digest(folder, ["made_net:build"])
    (folder / "made_other.py").write_text("x = 2\n")
    assert code_digest(folder, ["made_net:build"]) == before
    (folder / "made_parts.py").write_text("width = 4\n")
    assert code_digest(folder, ["made_net:build"]) != before
    assert code_digest(folder, ["absent:build"]) == code_digest(folder, [])


def test_the_digest_covers_packages_circles_and_files_that_do_not_parse(folder):
    packaged = code_digest(folder, ["made_package:f"])
    (folder / "made_package" / "deep.py").write_text("y = 1\n")
    assert code_digest(folder, ["made_package:f"]) != packaged
    (folder / "made_parts.py").write_text("import made_net\n")
    circle = code_digest(folder, ["made_net:build"])
    (folder / "made_parts.py").write_text("import made_net (\n")
    assert code_digest(folder, ["made_net:build"]) != circle


def test_a_function_is_found_beside_the_run_file(folder):
    assert resolve("made_package:f", "network.build", folder)() == "packaged"
    assert str(folder) not in sys.path


def test_a_module_that_hides_the_one_beside_the_run_file_is_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "made_other.py").write_text("def f(): return 'elsewhere'\n")
    assert resolve("made_other:f", "network.build", elsewhere)() == "elsewhere"
    with pytest.raises(ConfigError, match="'made_other' beside the run file is hidden by"):
        resolve("made_other:f", "network.build", folder)


def test_an_import_error_inside_the_module_is_not_taken_for_a_missing_module(folder):
    (folder / "made_net.py").write_text("import a_library_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        resolve("made_net:build", "network.build", folder)


class TestShared:
    @pytest.fixture
    def beside(self, folder):
        own = folder / "own"
        (folder / "shared").mkdir()
        own.mkdir()
        (own / "made_net.py").write_text("from made_common import f\n")
        (folder / "shared" / "made_common.py").write_text("from made_deep import f\n")
        (folder / "shared" / "made_deep.py").write_text("def f(): return 'shared'\n")
        return own

    def test_what_several_run_files_share_is_found_and_covered_by_the_digest(self, beside):
        assert resolve("made_net:f", "network.build", beside)() == "shared"
        assert resolve("made_common:f", "network.build", beside)() == "shared"
        before = code_digest(beside, ["made_net:f"])
        (beside.parent / "shared" / "made_deep.py").write_text("def f(): return 'changed'\n")
        assert code_digest(beside, ["made_net:f"]) != before

    def test_a_module_beside_the_run_file_comes_before_a_shared_one_of_its_name(self, beside):
        (beside / "made_deep.py").write_text("def f(): return 'own'\n")
        assert resolve("made_net:f", "network.build", beside)() == "own"
        before = code_digest(beside, ["made_net:f"])
        (beside.parent / "shared" / "made_deep.py").write_text("def f(): return 'hidden'\n")
        assert code_digest(beside, ["made_net:f"]) == before
