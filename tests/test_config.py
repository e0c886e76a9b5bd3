"""Configuration: misspellings are named before anything is built; objects arrive as they are; loaded models run nothing."""

import dataclasses
import sys
import types
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mmldm import config, targets
from mmldm.config import ConfigError, build, check, compose, resolved

TRAIN = """
defaults: [_self_, {codec: small}, {optimizer: adamw}, {experiment: null}]
seed: 0
name: one
run: runs/${name}
"""
FILES = {
    "train": TRAIN,
    "codec__small": "_target_: fake_lab.Codec\nwidth: 3\n",
    "codec__large": "_target_: fake_lab.Codec\nwidth: 30\nmedia: {_target_: fake_lab.Media, rate: 8}\n",
    "optimizer__adamw": "_target_: torch.optim.AdamW\n_partial_: true\nlr: 1e-3\n",
    "experiment__good": "# @package _global_\ndefaults: [override /codec: large]\nseed: 7\n",
    "experiment__bad": "# @package _global_\ndefaults: [override /codec: larg]\n",
    "experiment__worse": "# @package _global_\ndefaults: [{/codec@second: smal}]\n",
    "experiment__torn": "# @package _global_\nseed: [1\n",
}


class Media:
    def __init__(self, rate: int, shape: tuple[int, ...] = (1,), path: str | None = None):
        self.rate, self.shape, self.path = rate, shape, path


class Codec:
    def __init__(
        self,
        width: int,
        media: Media | None = None,
        scale: float = 1.0,
        kind: Literal["a", "b"] = "a",
        act: Callable | None = None,
        names: Sequence[str] = (),
        causal: bool = False,
    ):
        if width < 0:
            raise ValueError(f"wanted a positive width, got {width}")
        self.width, self.media, self.scale, self.kind, self.act, self.names = width, media, scale, kind, act, names


@dataclasses.dataclass
class Size:
    channels: int


class Net:
    def __init__(self, streams: dict, depth: int, size: Size | None = None, codec: Codec | None = None):
        self.streams, self.depth, self.size, self.codec = streams, depth, size, codec


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    """A package of an outsider that the configurations may name."""
    module = types.ModuleType("fake_lab")
    for thing in (Media, Codec, Net):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "fake_lab", module)


def failure(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# ---------------------------------------------------------------- compose


def test_compose_gives_what_the_files_and_overrides_say(conf):
    conf(**FILES)
    assert resolved(compose(["seed=3", "name=two"]))["run"] == "runs/two"
    cfg = resolved(compose(["experiment=good"]))
    assert cfg["seed"] == 7 and cfg["codec"]["width"] == 30


@pytest.mark.parametrize(
    "override, words",
    [
        ("codec.widht=3", ["'codec.widht'", "did you mean 'codec.width'"]),
        ("lr=3", ["'lr'", "did you mean 'optimizer.lr'"]),
        ("sed=1", ["'sed'", "did you mean 'seed'"]),
        ("codek=small", ["'codek'", "did you mean 'codec'"]),
        ("codec=smal", ["'codec/smal'", "did you mean 'small'", "choose from large, small"]),
        ("experiment=god", ["'experiment/god'", "did you mean 'good'"]),
        ("experiment=bad", ["'codec/larg'", "did you mean 'large'"]),
        ("experiment=worse", ["experiment/worse.yaml", "'codec/smal'", "did you mean 'small'"]),
        ("experiment=torn", ["not valid yaml", "torn.yaml", "line"]),
        ("~codec.foo", ["'codec.foo'"]),
        ("+codec=large", ["codec is chosen already", "without +"]),
        ("seed=[1", ["cannot read the override 'seed=[1'"]),
        ("name=a, b", ["name=a, b"]),
    ],
)
def test_a_misspelled_override_is_named_with_the_nearest(conf, override, words):
    conf(**FILES)
    text = failure(compose, [override])
    assert all(word in text for word in words), text
    assert len(text.splitlines()) <= 6


def test_misspelled_command_is_told_beside_good_overrides(conf):
    conf(**FILES)
    assert "did you mean 'codec.media.rate'" in failure(compose, ["experiment=good", "codec.media.rat=3", "seed=4"])


def test_unknown_primary_config_lists_what_there_is(conf):
    conf(**FILES)
    assert "choose from train" in failure(compose, [], "trian")


def test_config_dirs_extend_but_do_not_shadow(conf, tmp_path):
    conf(**FILES)
    mine = tmp_path / "mine, with comma" / "codec"
    mine.mkdir(parents=True)
    (mine / "eeg.yaml").write_text("_target_: fake_lab.Codec\nwidth: 99\n")
    (mine / "small.yaml").write_text("_target_: fake_lab.Codec\nwidth: 1\n")
    assert compose(["codec=eeg"], config_dirs=[mine.parent]).codec.width == 99
    assert compose(["codec=small"], config_dirs=[mine.parent]).codec.width == 3
    assert "did you mean 'eeg'" in failure(compose, ["codec=eeeg"], config_dirs=[mine.parent])


def test_compose_twice_and_after_an_error(conf):
    conf(**FILES)
    failure(compose, ["sed=1"])
    assert compose(["seed=2"]).seed == 2 and compose([]).seed == 0


def test_launch_runs_the_task_under_hydra_and_explains_errors(conf, tmp_path, monkeypatch, capfd):
    conf(**FILES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmldm", "train"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", "python -m")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    seen = []
    config.launch(lambda cfg: seen.append((cfg.seed, compose(["seed=5"]).seed)), "train.py", ["seed=4"])
    assert seen == [(4, 5)] and sys.argv == ["train.py", "seed=4"]
    assert sys.modules["__main__"].__spec__ is None  # Lightning starts `train.py seed=4`, not `-m mmldm.commands.cli seed=4`
    config.launch(lambda cfg: seen.append(cfg.seed), "train.py", ["--multirun", "seed=1,2"])
    assert seen[1:] == [1, 2]
    assert "did you mean 'seed'" in failure(config.launch, lambda cfg: None, "train.py", ["sed=4"])

    def refuse(cfg):
        seen.append("refused")
        raise ValueError("wanted files, got none")

    capfd.readouterr()

    with pytest.raises(ValueError, match="wanted files"):
        config.launch(refuse, "train.py", [])
    with pytest.raises(ValueError, match="wanted files"):
        config.launch(refuse, "train.py", ["--multirun", "seed=1,2"])
    assert seen[3:] == ["refused"] * 3 and "Error executing" not in "".join(capfd.readouterr())


def test_every_job_has_its_own_run_folder(conf, tmp_path, monkeypatch):
    settings = 'hydra:\n  run: {dir: "${run}"}\n  sweep: {dir: "${run}", subdir: "${hydra:job.num}"}\n'
    conf(**{**FILES, "train": FILES["train"].replace("runs/${name}", "runs/${now:%Y-%m-%d_%H-%M-%S}") + settings})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmldm"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    seen = []
    task = lambda cfg: seen.append(config.run_folder(cfg))  # noqa: E731
    config.launch(task, "train.py", ["run=runs/a b"])
    config.launch(task, "train.py", ["--multirun", "run=runs/c", "seed=1,2"])
    config.launch(task, "train.py", ["--multirun", "codec.width=1,2"])
    config.launch(task, "train.py", ["run=runs/x", "hydra.run.dir=runs/told"])  # as Lightning tells its further processes
    assert [p.as_posix() for p in seen[:3]] == ["runs/a b", "runs/c/0", "runs/c/1"]
    assert seen[3].parent == seen[4].parent and [seen[3].name, seen[4].name] == ["0", "1"]
    assert not set(",= ") & set(seen[3].parent.name) and seen[3].parent.parent.name == "runs"
    assert seen[5].as_posix() == "runs/told"
    assert all((p / ".hydra").is_dir() for p in seen)  # Hydra's own record lies in the same folder
    assert config.run_folder(compose(["run=runs/z"])).as_posix() == "runs/z"


# ---------------------------------------------------------------- check


def test_check_reports_all_faults_at_once(conf):
    conf(**FILES)
    cfg = compose(["+codec.widht=3", "+optimizer.weight_decy=0.1", "codec.width=abc", "+extra._target_=fake_lab.Media"])
    text = failure(check, cfg)
    assert "codec.widht: Codec has no parameter 'widht' (did you mean 'width'?)" in text
    assert "optimizer.weight_decy: AdamW has no parameter 'weight_decy' (did you mean 'weight_decay'?)" in text
    assert "codec.width: wanted int, got 'abc'" in text
    assert "extra.rate: Media needs a value for 'rate'" in text
    assert "extra: there is no such setting" in text
    assert len(text.splitlines()) == 5


def test_keys_that_nothing_reads_are_told(conf, tmp_path):
    files = {"train": FILES["train"].replace("seed: 0", "seed: 0\ndata: {path: null, batch_size: 4}\nshift: null")}
    conf(**{**FILES, **files}, shift__fixed="_target_: fake_lab.Media\nrate: 3\n")
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    told = "data: {batchsize: 4, kind: x, other: 1}\npreviewz: 3\nshift: {rate: 2}\nname: ${data.kind}\n"
    (mine / "wrong.yaml").write_text(f"# @package _global_\n{told}")
    text = failure(check, compose(["experiment=wrong"], config_dirs=[mine.parent]))
    assert "data.batchsize: there is no such setting (did you mean 'data.batch_size'" in text
    assert "data.other: there is no such setting (choose from " in text and "data.kind" not in text
    assert "previewz: there is no such setting" in text and "shift: wanted a node with _target_, got only rate" in text
    assert len(text.splitlines()) == 4
    (mine / "right.yaml").write_text("# @package _global_\ndata: {batch_size: 8, kind: x}\nname: ${data.kind}\n")
    check(compose(["experiment=right"], config_dirs=[mine.parent]))


def test_what_reads_a_missing_value_is_told_by_its_source(conf):
    conf(**FILES)
    text = failure(check, compose(["codec.width=???", "seed=${codec.width}", "name=${codec.width}"]))
    assert "codec.width: a value is required; add codec.width=…" in text


def test_check_passes_what_can_be_built(conf):
    conf(**FILES)
    check(compose(["experiment=good"]))


@pytest.mark.parametrize(
    "node, word",
    [
        ({"_target_": "fake_lab.Codec", "width": 1.5}, "width: wanted int, got 1.5"),
        ({"_target_": "fake_lab.Codec", "width": True}, "width: wanted int"),
        ({"_target_": "fake_lab.Codec", "width": None}, "width: wanted int, got None"),
        ({"_target_": "fake_lab.Codec", "width": "???"}, "width: a value is required"),
        ({"_target_": "fake_lab.Codec", "width": 1, "kind": "c"}, "kind: wanted one of a, b, got 'c'"),
        ({"_target_": "fake_lab.Codec", "width": 1, "scale": "1e-3x"}, "scale: wanted float"),
        ({"_target_": "fake_lab.Codec", "width": 1, "causal": "yes"}, "causal: wanted bool"),
        ({"_target_": "fake_lab.Codec", "width": 1, "media": "wav"}, "media: wanted"),
        ({"_target_": "fake_lab.Codec", "width": 1, "act": "relu"}, "act: wanted"),
        ({"_target_": "fake_lab.Codec", "width": 1, "names": "abc"}, "names: wanted Sequence[str], got 'abc'"),
        ({"_target_": "fake_lab.Codec", "width": 1, "names": [1]}, "names: wanted"),
        ({"_target_": "fake_lab.Codec", "width": 1, "media": {"_target_": "fake_lab.Net", "_partial_": False}}, "got Net"),
        ({"_target_": "fake_lab.Media", "rate": 1, "shape": [1, "b"]}, "shape: wanted tuple[int, ...]"),
        ({"_target_": "fake_lab.Cdec", "width": 1}, "there is no fake_lab.Cdec"),
        ({"_target_": "no_such_lab.Codec"}, "there is no no_such_lab.Codec"),
        ({"_target_": "mmldm.interface.Codec"}, "did you mean 'mmldm.interfaces.Codec'"),
        ({"_target_": "mmldm.interfaces.Coedc"}, "did you mean 'mmldm.interfaces.Codec'"),
        ({"_target_": 3}, "_target_: wanted a name"),
        ({"_target_": "math.pi"}, "cannot be called"),
    ],
)
def test_check_names_the_fault(node, word):
    text = failure(check, {"top": [node]})
    assert word in text and text.startswith("top.0"), text


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "fake_lab.Codec", "width": 1, "scale": 2, "media": None, "names": ["a"], "kind": "b"},
        {"_target_": "fake_lab.Codec", "_args_": [1]},
        {"_target_": "fake_lab.Net", "_partial_": True, "depth": 2},
        {"_target_": "fake_lab.Net", "_partial_": True, "streams": "???", "depth": 2},
        {"_target_": "fake_lab.Codec", "width": 1, "act": {"_target_": "torch.nn.functional.silu", "_partial_": True}},
        {"_target_": "fake_lab.Codec", "width": 1, "act": {"_target_": "torch.nn.SiLU"}},
        {"_target_": "fake_lab.Codec", "width": 1, "media": {"_target_": "fake_lab.Media", "rate": 3, "shape": [1, 2]}},
        {"_target_": "dict", "anything": 1} | {"_target_": "builtins.dict"},
    ],
)
def test_check_lets_good_nodes_pass(node):
    check({"top": node})


def test_check_sees_a_broken_interpolation(conf):
    conf(**FILES)
    assert "name: Interpolation key 'nope' not found" in failure(check, compose(["name=${nope}"]))


# ---------------------------------------------------------------- build


def test_build_gives_plain_values_and_nested_objects(conf):
    conf(**FILES)
    codec = build(compose(["experiment=good", "+codec.names=[a,b]"]).codec)
    assert type(codec) is Codec and type(codec.media) is Media and codec.names == ["a", "b"] and type(codec.names) is list
    assert build(None) is None and build({}) is None
    assert [type(c) for c in build(OmegaConf.create([{"_target_": "fake_lab.Codec", "width": 1}]))] == [Codec]


def test_build_passes_objects_as_they_are():
    size, streams, codec = Size(4), {"a": Size(1)}, Codec(1)
    for node in ({"_target_": "fake_lab.Net", "depth": 2}, {"_target_": "fake_lab.Net", "_partial_": True, "depth": 2}):
        net = build(OmegaConf.create(node), streams=streams, size=size, codec=codec)
        assert type(net) is Net and net.depth == 2
        assert net.size is size and net.streams is streams and net.codec is codec
        assert build(node, trust=("fake_lab.Net",), streams=streams).streams is streams
    assert build({"_target_": "fake_lab.Net", "_partial_": True, "depth": 2})(streams={}).depth == 2


def test_build_does_not_change_the_node(conf):
    conf(**FILES)
    cfg = compose(["experiment=good"])
    before = OmegaConf.to_yaml(cfg)
    build(cfg.codec, scale=2.0)
    assert OmegaConf.to_yaml(cfg) == before


def test_build_tells_where_a_constructor_refused(conf):
    conf(**FILES)
    assert failure(build, compose(["codec.width=-1"]).codec) == "codec: wanted a positive width, got -1"
    with pytest.raises(TypeError):  # the program's own error keeps its type and its traceback
        build({"_target_": "fake_lab.Codec", "width": "x"})
    assert "streams" in failure(build, {"width": 3}, streams={})


# ---------------------------------------------------------------- loaded models

AXIS = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
PAYLOADS = [
    {"_target_": "os.system", "command": "touch {canary}"},
    {"_target_": "os.system", "_args_": ["touch {canary}"]},
    {"_target_": "posix.system", "_args_": ["touch {canary}"]},
    {"_target_": "subprocess.run", "args": ["touch", "{canary}"]},
    {"_target_": "subprocess.Popen", "args": ["touch", "{canary}"]},
    {"_target_": "builtins.open", "file": "{canary}", "mode": "w"},
    {"_target_": "builtins.exec", "_args_": ["open('{canary}', 'w')"]},
    {"_target_": "builtins.eval", "_args_": ["open('{canary}', 'w')"]},
    {"_target_": "builtins.__import__", "name": "antigravity"},
    {"_target_": "io.open", "file": "{canary}", "mode": "w"},
    {"_target_": "os.open", "path": "{canary}", "flags": 66},
    {"_target_": "pathlib.Path.touch", "self": "{canary}"},
    {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": "{canary}"},
    {"_target_": "shutil.rmtree", "path": "{canary}"},
    {"_target_": "numpy.load", "file": "{canary}", "allow_pickle": True},
    {"_target_": "numpy.save", "file": "{canary}", "arr": [1]},
    {"_target_": "pickle.loads", "_args_": ["cos\nsystem\n(S'touch {canary}'\ntR."]},
    {"_target_": "torch.load", "f": "{canary}", "weights_only": False},
    {"_target_": "torch.save", "obj": 1, "f": "{canary}"},
    {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"},
    {"_target_": "torch.utils.collect_env.run", "command": "touch {canary}"},
    {"_target_": "torch.utils.cpp_extension.load_inline", "name": "a", "cpp_sources": ""},
    {"_target_": "timeit.timeit", "stmt": "open('{canary}', 'w')", "number": 1},
    {"_target_": "cProfile.run", "statement": "open('{canary}', 'w')"},
    {"_target_": "runpy.run_path", "path_name": "{canary}"},
    {"_target_": "importlib.import_module", "name": "antigravity"},
    {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system", "command": "touch {canary}"}},
    {"_target_": "hydra.utils.call", "_args_": [{"_target_": "os.system", "command": "touch {canary}"}]},
    {"_target_": "hydra.utils.get_method", "path": "os.system"},
    {"_target_": "functools.partial", "_args_": ["os.system", "touch {canary}"]},
    {"_target_": "mmldm.config.os.system", "command": "touch {canary}"},
    {"_target_": "mmldm.store.shutil.rmtree", "path": "{canary}"},
    {"_target_": "mmldm.config.build", "node": {"_target_": "os.system", "command": "touch {canary}"}},
    {"_target_": "mmldm.config.instantiate", "_args_": [{"_target_": "os.system", "command": "touch {canary}"}]},
    {"_target_": "mmldm.pipeline.Pipeline.load", "path": "{canary}"},
    {"_target_": "mmldm.model.torch.save", "obj": 1, "f": "{canary}"},
    {"_target_": "mmldm.model.Whitening.__init__.__globals__", "x": 1},
    {"_target_": "mmldm.model.Whitening.__mro__", "x": 1},
    {"_target_": "mmldm.model.Whitening.fit", "posteriors": []},
    {"_target_": "mmldm.model._per_channel"},
    {"_target_": "mmldm.store._Loader", "stream": "a"},
    {"_target_": "mmldm.commands.cli.main", "argv": ["demo"]},
    {"_target_": "mmldm"},
    {"_target_": ""},
    {"_target_": ["os.system"]},
    {"_target_": {"_target_": "os.system", "command": "touch {canary}"}},
    {"_target_": None},
    {"_target_": "mmldm.model.Whitening", "channels": {"_target_": "os.system", "command": "touch {canary}"}},
    {"_target_": "mmldm.model.Whitening", "channels": [[{"x": {"_target_": "os.getpid"}}]]},
    {"_target_": "mmldm.model.Whitening", "channels": "${oc.env:HOME}"},
    {"_target_": "mmldm.model.Whitening", "channels": 2, "_args_": [3]},
    {"_target_": "mmldm.model.Whitening", "channels": 2, "_recursive_": False},
    {"_target_": "mmldm.model.Whitening", "channels": 2, "_convert_": "none"},
    {"_target_": "mmldm.model.Whitening", "channels": 2, "_partial_": "yes"},
    {"_target_": "mmldm.model.Whitening ", "channels": 2},
    {"_target_": "MMLDM.model.Whitening", "channels": 2},
    {"_target_": "os.getpid", "_partial_": True},
    {"_target_": "this_module_must_not_be_imported.Thing"},
    {"plain": {"deep": [1, [2, {"_target_": "os.getpid"}]]}},
    {"plain": "${oc.decode:1}", "x": 1},
    {"${oc.env:HOME}": 1},
    {1: {"_target_": "os.getpid"}},
    {"_execution_whitelist_": "*", "_target_": "os.getpid"},
    AXIS,
]
HARMFUL = (
    "os.system",
    "subprocess",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "shutil",
    "os.remove",
    "os.rename",
    "socket",
    "exec",
)


def _filled(node, canary):
    if isinstance(node, dict):
        return {key: _filled(value, canary) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, canary) for value in node]
    return node.replace("{canary}", canary) if isinstance(node, str) else node


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_nothing_of_a_hostile_model_runs(payload, tmp_path, audit):
    targets.is_target("x", ())  # the source of mmldm is read once
    canary = tmp_path / "canary"
    node = _filled(payload, str(canary))
    before = set(sys.modules)
    with audit.watch() as events:
        failure(build, node, trust=())
    assert not canary.exists()
    assert "antigravity" not in sys.modules and "this_module_must_not_be_imported" not in sys.modules
    ran = [e for e, _ in events if e.startswith(HARMFUL)]
    opened = [a for e, a in events if e == "open" and str(a[0]) == str(canary)]
    assert not ran and not opened
    assert {n for n in set(sys.modules) - before if not n.startswith("mmldm")} == set()


def test_parts_of_a_model_can_be_built():
    assert build({"_target_": "mmldm.model.Whitening", "channels": 2}, trust=()).mean.shape == (2,)


def test_only_exact_trusted_names_are_added():
    node = {"_target_": "fake_lab.Codec", "width": 2}
    assert "--trust fake_lab.Codec" in failure(build, node, trust=())
    assert build(node, trust=("fake_lab.Codec",)).width == 2
    assert build(node, trust="fake_lab.Codec").width == 2
    for near in ("fake_lab", "fake_lab.", "fake_lab.*", "fake_lab.Codecs", "xfake_lab.Codec", "fake_lab.Code"):
        failure(build, node, trust=(near,))
        failure(build, node, trust=near)


def test_a_name_that_was_replaced_is_refused(monkeypatch):
    import mmldm.model

    monkeypatch.setattr(mmldm.model, "Whitening", Codec)
    assert "not the class of that name" in failure(build, {"_target_": "mmldm.model.Whitening", "channels": 2}, trust=())


def test_classes_outside_the_parts_of_a_model_are_not_for_loaded_models():
    assert targets.is_target("mmldm.model.Whitening", ()) and targets.is_target("anything.At.all")
    for name in ("mmldm.pipeline.Pipeline", "mmldm.interfaces.MediaError", "mmldm.store.Parts", "mmldm.config.ConfigError"):
        assert not targets.is_target(name, ()), name


def test_hydra_refusals_become_config_errors():
    text = failure(build, {"_target_": "os.system", "command": "true"})
    assert "os.system" in text and not isinstance(ConfigError("x"), HydraException)
