"""The doctor on this machine, and in processes where something is missing or broken."""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from multigate import doctor
from multigate.doctor import Check, diagnose
from multigate.nn import kernels

ROOT = Path(__file__).parent.parent
HIDE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == {module!r} else self.finder.find_spec(name, path, target)
sys.meta_path = [Without(finder) for finder in sys.meta_path]
sys.argv = ["multigate", "doctor"]
from multigate.cli import main
main()
"""


def by_name() -> Mapping[str, Check]:
    return {check.name: check for check in diagnose()}


def told(code: str, *flags: str) -> str:
    """What Python prints in a process of its own, which must end well."""
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def row(output: str, name: str) -> list[str]:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines()]
    (found,) = (cells for cells in lines if cells and cells[0] == name)
    return found


def test_a_machine_that_runs_the_tests_is_well() -> None:
    before = torch.get_rng_state()
    checks = by_name()
    assert torch.equal(torch.get_rng_state(), before), "it leaves the random state alone"
    for name in ("python", "multigate", "torch", "pyarrow", "extra boost", "cpu", "threads", "training on cpu"):
        assert checks[name].state == "ok", checks[name]
    for name in ("torch", "pyarrow", "multigate"):
        assert checks[name].note == version(name)
    assert f"torch uses {torch.get_num_threads()}" in checks["threads"].note
    assert ("cuda:0" in checks) == ("training on cuda:0" in checks) == torch.cuda.is_available()
    assert not {"extra dev", "extra docs"} & checks.keys()


def test_compiled_kernels_are_told_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    state, note = kernels.built()
    expected = ("none", f"{note}; torch's operators do the same work") if state is None else ("ok", note)
    assert by_name()["compiled kernels"][1:] == expected
    monkeypatch.setenv(kernels.OFF, "off")
    kernels.built.cache_clear()
    assert by_name()["compiled kernels"].state == "none"
    kernels.built.cache_clear()


def test_an_extra_that_is_missing_comes_with_its_command() -> None:
    output = told(HIDE.format(module="sklearn"))
    assert row(output, "extra boost")[1:] == [
        "missing",
        "scikit-learn missing; to install: pip install 'multigate[boost]'",
    ]
    assert row(output, "extra tensorboard")[1] == "ok"
    assert row(output, "training on cpu")[1] == "ok"


def test_without_torch_the_rest_is_still_told() -> None:
    output = told(HIDE.format(module="torch"))
    state, note = row(output, "torch")[1:]
    assert state == "missing"
    assert "pip install 'torch" in note
    assert row(output, "training on cpu")[1:] == ["failed", "ModuleNotFoundError: No module named 'torch'"]
    assert row(output, "numpy")[1] == row(output, "temporary files")[1] == "ok"


def test_a_bare_python_gets_an_answer_too() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from multigate.doctor import diagnose; "
    output = told(code + "print(*diagnose(), sep='\\n')", "-S", "-I")
    assert "name='multigate', state='failed'" in output
    assert "name='python', state='ok'" in output
    assert "name='temporary files', state='ok'" in output


def test_every_extra_is_known_by_the_modules_it_brings() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras.keys() - doctor.FOR_DEVELOPERS:
        for wanted in extras[extra]:
            name = doctor.REQUIREMENT.match(f"{wanted}; extra == '{extra}'").group(1)
            import_module(doctor.IMPORTED_AS.get(name, name.replace("-", "_")))


@pytest.mark.parametrize(
    ("stated", "parts"),
    [
        ("torch<2.14,>=2.9", ("torch", "<2.14,>=2.9", None)),
        ("scikit-learn>=1.7; extra == 'boost'", ("scikit-learn", ">=1.7", "boost")),
        ('types-pyyaml; extra == "dev"', ("types-pyyaml", "", "dev")),
        ("multigate[boost,report]; extra == 'dev'", ("multigate", "", "dev")),
        ("tomli>=2; python_version < '3.11' and extra == 'old'", ("tomli", ">=2", "old")),
    ],
)
def test_requirements_are_read_as_packages_state_them(stated: str, parts: tuple[str | None, ...]) -> None:
    assert doctor.REQUIREMENT.match(stated).groups() == parts


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("2.13.0+cpu", "<2.14,>=2.9", True),
        ("2.14.0", "<2.14,>=2.9", False),
        ("2.8.1", "<2.14,>=2.9", False),
        ("10.0", ">=9.6", True),
        ("1.7rc1", ">=1.7", True),
        ("0.1", "", True),
    ],
)
def test_versions_are_held_against_what_is_wanted(found: str, wanted: str, fits: bool) -> None:
    assert doctor._fits(found, wanted) is fits


def test_data_are_listed_and_a_wrong_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIGATE_DATA", raising=False)
    assert by_name()["MULTIGATE_DATA"].state == "none"
    monkeypatch.setenv("MULTIGATE_DATA", str(tmp_path))
    assert by_name()["MULTIGATE_DATA"].state == "missing"
    (tmp_path / "kuairand").mkdir()
    (tmp_path / "census-income").mkdir()
    assert by_name()["MULTIGATE_DATA"][1:] == ("ok", f"{tmp_path} holds census-income, kuairand")
    monkeypatch.setenv("MULTIGATE_DATA", str(tmp_path / "nowhere"))
    assert by_name()["MULTIGATE_DATA"].state == "failed"


def test_folders_that_cannot_be_written_or_are_full_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert by_name()["cache"].state == "ok"
    assert not (tmp_path / "new").exists(), "looking leaves nothing behind"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file" / "cache"))
    assert by_name()["cache"].state == "failed"
    monkeypatch.setattr(doctor, "LEAST_SPACE", 2**80)
    assert by_name()["temporary files"].state == "failed"


def test_a_device_that_does_not_compute_fails() -> None:
    assert doctor._check("training", doctor._training, "meta").state == "failed"
