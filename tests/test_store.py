"""The trained-model folder: what was saved is what is loaded, or an error that says why; half a model is never seen."""

import json
import os
import shutil

import pytest
import torch
import yaml

from mmldm import store
from mmldm.store import find_model, load_model, save_model

SPEC = {
    "kind": "codec",
    "codecs": {"a": {"_target_": "x.Y", "sizes": [1, 2], "lr": 1e-05, "none": None, "text": "ein Regen ☂"}},
}


def parts(value=1.0):
    shared = torch.arange(6.0).reshape(2, 3)
    return {
        "codec.a": {"w": torch.full((2, 2), value), "scalar": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)},
        "denoiser": {"one": shared, "same": shared, "turned": shared.t(), "view": shared[:, 1]},
    }


def refusal(function, *args):
    with pytest.raises(ValueError) as caught:
        function(*args)
    return str(caught.value)


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "run" / "model", SPEC, parts(), {"steps": 3, "loss": [0.5, 0.25]}, "# A model\n")


def test_what_was_saved_is_loaded(model):
    stored = load_model(model)
    assert stored.spec == SPEC and stored.facts == {"steps": 3, "loss": [0.5, 0.25]} and stored.folder == model
    assert sorted(stored.parts) == ["codec.a", "denoiser"] and len(stored.parts) == 2 and "unet" not in stored.parts
    for name, tensors in parts().items():
        loaded = stored.parts[name]
        assert loaded.keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype, key
    assert (model / "README.md").read_text() == "# A model\n"
    assert sorted(p.name for p in model.parent.iterdir()) == ["model"]


def test_a_parameter_is_stored_as_its_value(tmp_path):
    layer = torch.nn.Linear(3, 2)
    loaded = load_model(save_model(tmp_path / "m", {}, {"layer": dict(layer.named_parameters())})).parts["layer"]
    assert torch.equal(loaded["weight"], layer.weight) and not loaded["weight"].requires_grad


def test_saving_does_not_touch_what_it_is_given(tmp_path):
    given, spec = parts(), {"a": [1]}
    pointers = {k: v.data_ptr() for k, v in given["denoiser"].items()}
    save_model(tmp_path / "m", spec, given)
    assert {k: v.data_ptr() for k, v in given["denoiser"].items()} == pointers and spec == {"a": [1]}


def test_the_digest_names_the_content(tmp_path):
    first, same, other = (save_model(tmp_path / n, SPEC, parts(v)) for n, v in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    assert load_model(first).digest == load_model(same).digest != load_model(other).digest


def test_a_repeated_list_is_written_out(tmp_path):
    twice = [1, 2]
    folder = save_model(tmp_path / "m", {"a": twice, "b": twice, "t": (3, 4)}, {})
    assert "&" not in (folder / "model.yaml").read_text()
    assert load_model(folder).spec == {"a": [1, 2], "b": [1, 2], "t": [3, 4]}


# ---------------------------------------------------------------- where a model is


def test_a_run_means_its_model(model):
    assert find_model(model.parent) == model and load_model(str(model.parent)).folder == model


def test_what_is_no_model_is_said(model, tmp_path):
    assert "did you mean 'run'" in refusal(load_model, tmp_path / "rum")
    assert "there is no trained model" in refusal(load_model, tmp_path / "deep" / "er")
    assert "manifest.json" in refusal(load_model, tmp_path)
    (tmp_path / "young" / "resume").mkdir(parents=True)
    assert "without a trained model yet" in refusal(load_model, tmp_path / "young")


# ---------------------------------------------------------------- changed, torn, foreign


@pytest.mark.parametrize("name", ["model.yaml", "README.md", "codec.a.safetensors", "denoiser.safetensors"])
@pytest.mark.parametrize("how", ["flip", "append", "cut", "gone"])
def test_any_change_of_any_file_is_refused(model, name, how):
    file = model / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[-1] ^= 1
        file.write_bytes({"flip": data, "append": file.read_bytes() + b"x", "cut": data[:-1]}[how])
    text = refusal(load_model, model)
    assert name in text and ("changed" in text or "not readable" in text)


def test_a_part_changed_after_loading_is_refused(model):
    stored = load_model(model)
    file = model / "denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert "changed" in refusal(stored.parts.__getitem__, "denoiser")
    with pytest.raises(KeyError, match="codec.a, denoiser"):
        stored.parts["unet"]


def rewritten(model, **changes):
    """The manifest as an attacker or a newer version would write it."""
    file = model / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return model


def test_a_newer_folder_is_refused(model):
    assert "update mmldm" in refusal(load_model, rewritten(model, format=store.FORMAT + 1, mmldm="99.0"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 1}', '{"format": "x", "files": {}}', "[" * 100000, '{"format":1,"files":3}']
)
def test_a_broken_manifest_is_refused(model, text):
    (model / "manifest.json").write_text(text)
    assert "not a manifest" in refusal(load_model, model)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b.safetensors", "weights.pkl", "code.py", "..", ""])
def test_a_manifest_cannot_name_other_files(model, name):
    files = json.loads((model / "manifest.json").read_text())["files"]
    assert "manifest.json" in refusal(load_model, rewritten(model, files=files | {name: "0" * 64}))


def test_unlisted_files_are_never_read(model, audit):
    (model / "evil.py").write_text("raise SystemExit('ran')")
    (model / "extra.safetensors").write_bytes(b"not weights")
    with audit.watch() as events:
        stored = load_model(model)
        list(stored.parts.values())
    opened = [os.path.basename(str(a[0])) for e, a in events if e == "open"]
    assert "evil.py" not in opened and "extra.safetensors" not in opened
    assert not [e for e, _ in events if e in ("pickle.find_class", "exec", "compile")]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: &x [1]\nb: *x",
        "- 1",
        "",
        "a: [",
        "[" * 5000,
        "a: " + "x" * (1 << 20),
    ],
    ids=range(8),
)
def test_a_hostile_model_yaml_is_refused(model, text):
    (model / "model.yaml").write_text(text)
    digest = store._digest((model / "model.yaml").read_bytes())
    files = json.loads((model / "manifest.json").read_text())["files"]
    assert "model.yaml" in refusal(load_model, rewritten(model, files=files | {"model.yaml": digest}))


# ---------------------------------------------------------------- replacing


def test_a_model_is_replaced_and_other_files_stay(model):
    (model / "notes.txt").write_text("mine")
    (model / "samples").mkdir()
    assert save_model(model, {"new": 1}, {"unet": parts(5.0)["codec.a"]}) == model
    stored = load_model(model)
    assert stored.spec == {"new": 1} and list(stored.parts) == ["unet"] and stored.parts["unet"]["w"][0, 0] == 5
    assert (model / "notes.txt").read_text() == "mine" and (model / "samples").is_dir()
    assert not (model / "denoiser.safetensors").exists()
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    assert "holds other things" in refusal(save_model, tmp_path / "photos", SPEC, parts())
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.png"]
    (tmp_path / "file").write_text("x")
    assert "holds other things" in refusal(save_model, tmp_path / "file", SPEC, parts())
    (tmp_path / "empty").mkdir()
    assert load_model(save_model(tmp_path / "empty", SPEC, parts())).spec == SPEC


@pytest.mark.parametrize(
    "spec, given, facts",
    [
        ({"a": torch.zeros(1)}, {}, {}),
        ({"a": object()}, {}, {}),
        (SPEC, {"a": {"w": [1.0]}}, {}),
        (SPEC, {"../a": {}}, {}),
        (SPEC, {"": {}}, {}),
        (SPEC, {}, {"a": object()}),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_model(model, spec, given, facts):
    refusal(save_model, model, spec, given, facts)
    assert load_model(model).spec == SPEC and [p.name for p in model.parent.iterdir()] == ["model"]


class Killed(BaseException):
    pass


def test_wherever_saving_is_killed_a_whole_model_is_found(model, monkeypatch, tmp_path):
    """Stop at each rename, flush and removal in turn, as a power cut would: nothing may be tidied up afterwards."""
    spare = tmp_path / "spare"
    shutil.copytree(model.parent, spare)
    stops = 0
    for stop in range(100):
        shutil.rmtree(model.parent)
        shutil.copytree(spare, model.parent)
        count = 0

        def maybe_die(function, stop=stop):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count > stop:
                    raise Killed
                return function(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(store.Path, "rename", maybe_die(store.Path.rename))
            patch.setattr(store, "_sync", maybe_die(store._sync))
            patch.setattr(store, "save_file", maybe_die(store.save_file))
            patch.setattr(store.shutil, "rmtree", maybe_die(shutil.rmtree))
            try:
                save_model(model, {"new": 1}, parts(2.0))
            except Killed:
                stops += 1
        spec = load_model(model.parent).spec
        assert spec in (SPEC, {"new": 1})
        save_model(model, {"newer": 2}, parts(3.0))
        assert load_model(model).spec == {"newer": 2}
        assert [p.name for p in model.parent.iterdir()] == ["model"], stop
        if count <= stop:
            break
    assert 8 < stops < 100


def test_no_code_can_hide_in_the_spec(model):
    text = (model / "model.yaml").read_text()
    assert yaml.safe_load(text) == SPEC and "!!" not in text
