"""The command line: help is light, unknown words are answered with the nearest, a user's error is a few lines."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmldm.commands import cli

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "numpy", "matplotlib", "av", "transformers")
LIGHT = """
import sys
from mmldm.commands import cli
try:
    status = cli.main({argv})
except SystemExit as leave:
    status = leave.code
print([name for name in {heavy} if name in sys.modules], status or 0)
"""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(argv):
    code = LIGHT.format(argv=argv, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[] 0"], done.stdout + done.stderr
    assert "mmldm" in done.stdout


def test_import_of_the_package_is_light():
    code = f"import sys, mmldm; print([n for n in {HEAVY} if n in sys.modules], mmldm.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")


def test_pipeline_is_found_at_the_top():
    import mmldm
    from mmldm import Pipeline

    assert Pipeline.__name__ == "Pipeline" and Pipeline.__module__ == "mmldm.pipeline"
    with pytest.raises(AttributeError, match="Pipline"):
        _ = mmldm.Pipline


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert cli.main([]) == 2


@pytest.mark.parametrize("word, near", [("trian", "train"), ("genrate", "generate"), ("demos", "demo")])
def test_unknown_command_is_answered_with_the_nearest(word, near, capsys):
    assert cli.main([word, "x"]) == 2
    assert f"there is no command {word!r}; did you mean {near!r}?" in capsys.readouterr().err
    assert cli.main(["zzzzz"]) == 2
    assert "choose from check, train" in capsys.readouterr().err


def raiser(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wanted a, got b"),
        FileNotFoundError(2, "No such file", "x.wav"),
        ImportError("wanted transformers; pip install mmldm[text]"),
        ValueError("\n".join(f"line {i}" for i in range(50))),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_users_error_is_a_few_lines(error, capsys, monkeypatch):
    monkeypatch.delenv("MMLDM_TRACEBACK", raising=False)
    assert cli.run_command(raiser(error), [], "train") == 2
    err = capsys.readouterr().err
    assert err.startswith("mmldm train: ") and "Traceback" not in err and len(err.splitlines()) <= 7
    with pytest.raises(type(error)):
        cli.run_command(raiser(error), ["--traceback"], "train")
    monkeypatch.setenv("MMLDM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.run_command(raiser(error), [], "train")


def test_every_fault_of_a_configuration_is_told(capsys):
    from mmldm.config import ConfigError

    cli.run_command(raiser(ConfigError(*(f"fault {i}" for i in range(20)))), [])
    err = capsys.readouterr().err
    assert all(f"fault {i}" in err for i in range(20))


def test_errors_of_hydra_are_users_errors(capsys):
    from hydra.errors import ConfigCompositionException

    assert cli.run_command(raiser(ConfigCompositionException("no such group")), []) == 2
    assert "no such group" in capsys.readouterr().err


def test_errors_of_the_program_keep_their_traceback():
    with pytest.raises(TypeError):
        cli.run_command(raiser(TypeError("bug")), [])


def test_interruption_and_status(capsys):
    assert cli.run_command(raiser(KeyboardInterrupt()), []) == 130
    assert cli.run_command(lambda argv: None, []) == 0
    assert cli.run_command(lambda argv: 1, []) == 1


def test_arguments_pass_untouched():
    seen = []
    prompt = "a, b=c ${oc.env:HOME} 'it''s' [1,2] --x"
    cli.run_command(lambda argv: seen.append(argv), [prompt, "--traceback", "-n", "4"])
    assert seen == [[prompt, "-n", "4"]]
