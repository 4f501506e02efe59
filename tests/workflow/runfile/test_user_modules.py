import importlib
import importlib.util
import multiprocessing
import subprocess
import sys

import pytest

from dalr_stream.errors import ConfigError
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.user_modules import UserModules


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made_net.py").write_text("import torch\nfrom made_parts import width\n")
    (tmp_path / "made_parts.py").write_text("width = 3\n")
    (tmp_path / "made_other.py").write_text("def f(): return 'other'\n")
    (tmp_path / "made_package").mkdir()
    (tmp_path / "made_package" / "__init__.py").write_text("def f(): return 'packaged'\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("made_")]:
        del sys.modules[name]


@pytest.mark.parametrize("value", [1, 2])
def test_what_one_test_imports_hides_nothing_from_the_next(value, tmp_path):
    (tmp_path / "left_over.py").write_text(f"def f(): return {value}\n")
    assert UserModules(tmp_path).resolve("left_over:f", "network.build")() == value


def digest(folder, *names):
    return UserModules(folder).digest(names)


def test_the_digest_covers_what_the_names_reach_and_nothing_else(folder):
    before = digest(folder, "made_net:build")
    (folder / "made_other.py").write_text("x = 2\n")
    assert digest(folder, "made_net:build") == before
    (folder / "made_parts.py").write_text("width = 4\n")
    assert digest(folder, "made_net:build") != before
    assert digest(folder, "absent:build") == digest(folder)


def test_the_digest_covers_packages_circles_and_files_that_do_not_parse(folder):
    packaged = digest(folder, "made_package:f")
    (folder / "made_package" / "deep.py").write_text("y = 1\n")
    assert digest(folder, "made_package:f") != packaged
    (folder / "made_parts.py").write_text("import made_net\n")
    circle = digest(folder, "made_net:build")
    (folder / "made_parts.py").write_text("import made_net (\n")
    assert digest(folder, "made_net:build") != circle


def test_a_function_is_found_beside_the_run_file_and_the_import_path_is_left_as_it_was(folder):
    path, finders = list(sys.path), dict(sys.path_importer_cache)
    assert UserModules(folder).resolve("made_package:f", "network.build")() == "packaged"
    assert sys.path == path
    assert sys.path_importer_cache.keys() - finders.keys() <= {str(folder / "made_package")}


def test_folders_without_an_init_file_are_packages_too(folder):
    (folder / "made_space").mkdir()
    (folder / "made_space" / "inner.py").write_text("from made_parts import width\ndef f(): return width\n")
    assert UserModules(folder).resolve("made_space.inner:f", "network.build")() == 3


def test_a_module_that_hides_the_one_beside_the_run_file_is_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "made_other.py").write_text("def f(): return 'elsewhere'\n")
    assert UserModules(elsewhere).resolve("made_other:f", "network.build")() == "elsewhere"
    with pytest.raises(ConfigError, match="'made_other' beside the run file is hidden by"):
        UserModules(folder).resolve("made_other:f", "network.build")


def test_an_import_error_inside_the_module_is_not_taken_for_a_missing_module(folder):
    (folder / "made_net.py").write_text("import a_library_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        UserModules(folder).resolve("made_net:build", "network.build")


def test_only_what_the_run_file_reaches_can_be_imported(folder):
    for chance in ("triton_of_made", "made_unreached"):
        (folder / f"{chance}.py").write_text("raise SystemExit('executed')\n")
    modules = UserModules(folder, names=["made_net:build"])
    with modules.importing():
        assert importlib.import_module("made_parts").width == 3
        for chance in ("triton_of_made", "made_unreached"):
            assert importlib.util.find_spec(chance) is None
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(chance)
        with modules.importing("made_other"):
            assert importlib.import_module("made_other").f() == "other"


def test_the_standard_library_is_never_taken_from_the_folder(folder):
    (folder / "statistics.py").write_text("raise SystemExit('executed')\n")
    (folder / "getpass.py").write_text("raise SystemExit('executed')\n")
    code = (
        "import sys, pathlib\n"
        "from dalr_stream.workflow.runfile.user_modules import UserModules\n"
        f"with UserModules(pathlib.Path({str(folder)!r}), names=['made_net:build']).importing():\n"
        "    for name in ('statistics', 'getpass'): sys.modules.pop(name, None)\n"
        "    import getpass, statistics\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["statistics", "numpy"])
def test_a_module_with_the_name_of_an_installed_one_is_refused(folder, name):
    (folder / f"{name}.py").write_text("")
    (folder / "made_parts.py").write_text(f"import {name}\nwidth = 3\n")
    with pytest.raises(ConfigError, match=f"'{name}' beside the run file has the name of a module that is installed"):
        UserModules(folder).resolve("made_net:width", "network.build")


def width_there(_):
    import made_parts

    return made_parts.width


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_started_meanwhile_import_from_there_too(folder, method):
    modules, context = UserModules(folder, names=["made_net:build"]), multiprocessing.get_context(method)
    with modules.importing(), context.Pool(1) as pool:
        assert pool.map(width_there, [0]) == [3]


class TestImportFrom:
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
        modules = UserModules(beside, ["../shared"])
        assert modules.resolve("made_net:f", "network.build")() == "shared"
        assert modules.resolve("made_common:f", "network.build")() == "shared"
        before = modules.digest(["made_net:f"])
        (beside.parent / "shared" / "made_deep.py").write_text("def f(): return 'changed'\n")
        assert modules.digest(["made_net:f"]) != before

    def test_a_folder_that_the_run_file_does_not_name_is_not_looked_into(self, beside):
        with pytest.raises(ModuleNotFoundError, match="made_common"):
            UserModules(beside).resolve("made_net:f", "network.build")

    def test_a_module_beside_the_run_file_comes_before_a_shared_one_of_its_name(self, beside):
        (beside / "made_deep.py").write_text("def f(): return 'own'\n")
        modules = UserModules(beside, ["../shared"])
        assert modules.resolve("made_net:f", "network.build")() == "own"
        before = modules.digest(["made_net:f"])
        (beside.parent / "shared" / "made_deep.py").write_text("def f(): return 'hidden'\n")
        assert modules.digest(["made_net:f"]) == before

    def test_the_run_file_names_it(self, run_file):
        shared = run_file.parent.parent / "shared"
        with pytest.raises(ConfigError, match=r"run\.import_from: there is no folder '.*shared'"):
            Project(load_config(run_file, ['run.import_from=["../shared"]']), run_file.parent)
        shared.mkdir()
        (shared / "made_common.py").write_text("from tiny_run import build\n")
        config = load_config(run_file, ['run.import_from=["../shared"]', "network.build=made_common:build"])
        assert type(Project(config, run_file.parent).code.build()).__name__ == "Tiny"
        sys.modules.pop("made_common")
