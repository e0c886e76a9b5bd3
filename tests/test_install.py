"""What a user installs: the wheel carries conf/ and works from any folder; the Makefile does what it says."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ("mmldm", "conf", "tests", "tools", "pyproject.toml", "README.md", "LICENSE", "Makefile")


def run(*command, cwd, **env):
    """Output of a command; the test fails with what it said."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def built(folder, source, *options):
    """The wheel that `pip wheel` makes of a source folder or archive."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A clean copy: building writes nothing into the working tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in PROJECT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        options = {"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}
        copy(ROOT / name, folder / name, **options)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return built(tmp_path_factory.mktemp("wheel"), source)


def files_of(folder):
    return sorted(
        p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    )


def test_the_wheel_carries_the_package_and_conf(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {*files_of("mmldm"), *(f"mmldm/{name}" for name in files_of("conf"))} <= names
    assert "mmldm/conf/train.yaml" in names and "mmldm/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mmldm"}
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_wheel_works_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "else where"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=elsewhere)
    path = {"PYTHONPATH": str(site)}
    assert "generate" in run(sys.executable, "-m", "mmldm.commands.cli", "--help", cwd=elsewhere, **path)
    code = "from mmldm import config; print(config.CONF_DIR); print(config.compose(['seed=3', 'run=x']).seed)"
    assert run(sys.executable, "-c", code, cwd=elsewhere, **path).split() == [str(site / "mmldm" / "conf"), "3"]
    script = next((site / "bin").glob("mmldm*"))
    assert "mmldm.commands.cli" in script.read_text()


def test_the_working_tree_finds_its_conf(tmp_path):
    code = "from mmldm import config; print(config.CONF_DIR)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).strip() == str(ROOT / "conf")


@pytest.mark.slow
def test_a_wheel_built_from_the_source_archive_is_the_same(source, wheel, tmp_path):
    """As an index would build it: first the archive, then the wheel from the archive."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "hatchling", cwd=tmp_path)
    run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path / "dist", cwd=source)
    archive = next((tmp_path / "dist").glob("*.tar.gz"))
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    assert {"conf/train.yaml", "mmldm/interfaces.py", "tests/test_install.py", "Makefile", "LICENSE"} <= names
    (tmp_path / "wheel").mkdir()
    second = built(tmp_path / "wheel", archive)
    assert set(zipfile.ZipFile(second).namelist()) == set(zipfile.ZipFile(wheel).namelist())


# ---------------------------------------------------------------- make


@pytest.fixture
def make(tmp_path):
    """The Makefile beside a Python that only writes down what it is asked to do."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    python = tmp_path / "fake python"
    python.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> "{tmp_path}/log"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
        'case "$2" in *version_info*) exit ${FAKE_OLD:-0};; esac\n'
    )
    python.chmod(0o755)

    def call(target, **env):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        command = ["make", target, f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False)
        lines = log.read_text().splitlines() if log.exists() else []
        return done.returncode, [line for line in lines if "version_info" not in line], done.stderr

    call.folder = tmp_path
    return call


DEMO = "-m mmldm.commands.cli demo"
TESTS = "-m pytest -n auto --maxprocesses 4 --dist loadfile"
CHECKS = ["-m ruff check .", "-m ruff format --check .", TESTS]


def test_make_demo_installs_once_and_runs(make):
    assert make("demo")[:2] == (0, ["-m venv .venv", "-m pip install --quiet -e .", DEMO])
    assert make("demo")[1] == [DEMO]
    later = os.stat(make.folder / ".venv" / ".installed").st_mtime + 10
    os.utime(make.folder / "pyproject.toml", (later, later))
    assert make("demo")[1] == ["-m pip install --quiet -e .", DEMO]


def test_make_test_installs_what_tests_need_and_lints(make):
    assert make("test")[1] == ["-m venv .venv", "-m pip install --quiet -e .[dev,text,pretrained]", *CHECKS]
    assert make("test")[1] == CHECKS
    assert make("demo")[1] == [DEMO]


def test_make_test_all_deselects_nothing(make):
    assert make("test-all")[1][-1] == f"{TESTS} -m "


def test_an_old_python_is_refused_in_one_line(make):
    status, lines, said = make("demo", FAKE_OLD="1")
    assert status != 0 and not lines and "wants Python 3.11 or newer" in said
    assert not (make.folder / ".venv").exists()


def test_requirements_are_ranges():
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r'"[\w.-]+==', text) and 'requires-python = ">=3.11"' in text
