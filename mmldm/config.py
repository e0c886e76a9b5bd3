"""From conf/ to objects: compose, check, build; with commands/ the only place that knows Hydra and OmegaConf."""

from __future__ import annotations

import copy
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from mmldm.settings import strangers
from mmldm.targets import did_you_mean, faults, is_target, objections, resolve, specs

__all__ = [
    "CONF_DIR", "ConfigError", "build", "check", "compose", "is_target", "launch", "member", "resolve", "resolved",
    "run_folder",
]  # fmt: skip

_HERE = Path(__file__).resolve().parent
_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}  # 1.4 has these defaults and no switch
CONF_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"


class ConfigError(ValueError):
    """A configuration that cannot be used; `faults` are its reasons, one line each."""

    def __init__(self, *faults: str):
        self.faults = faults
        super().__init__("\n".join(faults))


# ---------------------------------------------------------------- compose


def compose(overrides: Sequence[str] = (), config_name: str = "train", config_dirs: Sequence[str | Path] = ()) -> DictConfig:
    """The configuration that conf/<config_name>.yaml and the overrides give; raises ConfigError with did-you-mean.

    `config_dirs` are searched after conf/: they extend it.
    """
    try:
        return _compose(overrides, config_name, config_dirs)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise _explained(error, overrides, config_name, config_dirs) from error


def _compose(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> DictConfig:
    paths = ",".join(f"'file://{Path(d).resolve()}'" for d in config_dirs)
    search = [f"hydra.searchpath=[{paths}]"] if paths else []
    state = hydra.core.global_hydra.GlobalHydra.instance()
    running, state.hydra = state.hydra, None  # compose also works inside a running Hydra job
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), **_BASE):
            return hydra.compose(config_name, [*search, *overrides])
    finally:
        hydra.core.global_hydra.GlobalHydra.instance().hydra = running


def member(group: str, name: str | None) -> dict[str, Any] | None:
    """The plain node of conf/<group>/<name>.yaml, None without a name; raises ConfigError with did-you-mean."""
    if name is None:
        return None
    options = _options(group, ())
    if name not in options:
        raise ConfigError(f"there is no {group}={name}{did_you_mean(name, options)}; choose from {', '.join(options)}")
    return yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8"))


def launch(task: Callable[[DictConfig], Any], file: str | Path, overrides: Sequence[str], config_name: str = "train") -> None:
    """Run `task(cfg)` under Hydra (output folder, logging, --multirun, --config-dir) as if `python file *overrides` was called.

    Lightning starts its further processes from sys.argv, so `file` must run by itself. Raises ConfigError, and what the
    task raises: of several jobs the first error, when all have run.
    """
    errors: list[Exception] = []
    process = os.getpid()

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except Exception as error:  # raised below: Hydra would announce it with the overrides first
            if os.getpid() != process:  # a launcher's job elsewhere
                raise
            errors.append(error)

    sys.argv = [str(file), *overrides]
    sys.modules["__main__"].__spec__ = None  # else `python -m` would be started again without its command
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing: errors are told in one place
    try:
        hydra.main(config_path=str(CONF_DIR), config_name=config_name, **_BASE)(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        folders = [b for a, b in zip(overrides, overrides[1:], strict=False) if a in ("--config-dir", "-cd")]
        folders += [a.partition("=")[2] for a in overrides if a.startswith("--config-dir=")]
        plain = [a for a in overrides if not a.startswith("-") and a not in folders]
        raise _explained(error, plain, config_name, folders) from error
    if errors:
        raise errors[0]


def run_folder(cfg: DictConfig) -> Path:
    """Where a run writes: cfg.run; what Hydra chose from it in a job of `launch`; its own numbered folder in a multirun.

    Raises ConfigError where processes that were not started by this one would each choose another.
    """
    if not HydraConfig.initialized():
        return Path(cfg.run)
    started = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_NTASKS", "1")
    if int(started) > 1 and "${now:" in str(OmegaConf.to_container(cfg, resolve=False)["run"]):
        raise ConfigError(f"wanted a folder that {started} processes share, got one named by the clock; choose run=runs/NAME")
    chosen = HydraConfig.get()
    if chosen.mode == RunMode.MULTIRUN:
        return Path(cfg.run) / str(chosen.job.num)
    return Path(chosen.run.dir)  # Lightning's further processes are told this one


# ---------------------------------------------------------------- what went wrong, in one line


def _explained(error: Exception, overrides: Sequence[str], config_name: str, config_dirs: Sequence) -> ConfigError:
    text = "\n".join(dict.fromkeys(str(e) for e in _causes(error)))
    if isinstance(error, yaml.YAMLError):
        return ConfigError(f"not valid yaml: {' '.join(str(error).split())}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"cannot read the override {error.override!r}; write KEY=VALUE without spaces around the =")
    if found := re.search(r"(?:Could not override|Could not delete from config\.) '([^']+)'", text):
        key = found[1].split("@")[0]
        if key in _groups(config_dirs):
            return ConfigError(f"{key} is no part of this configuration; leave {key}=… out, or choose another experiment=")
        others = [o for o in overrides if not re.match(rf"[+~]*{re.escape(key)}\b", o)]
        return ConfigError(f"there is no setting {key!r}{_near_key(key, _settings(others, config_name, config_dirs))}")
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, option = found[1].rpartition("/")
        options = _options(group, config_dirs)
        near = did_you_mean(option, options) if group else did_you_mean(option, _options("", config_dirs))
        origin = re.search(r"In '([^']+)'", text)
        at = f"{origin[1]}.yaml: " if origin and origin[1] != config_name else ""
        return ConfigError(f"{at}there is no {found[1]!r}{near}; choose from {', '.join(options) or 'none'}")
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        return ConfigError(f"there is no {found[1]!r}; choose from {', '.join(_options('', config_dirs))}")
    if found := re.search(r"Multiple values for (\S+?)\.", text):
        return ConfigError(f"{found[1]} is chosen already; to choose another write {found[1]}=…, without +")
    if found := re.search(r"Missing mandatory value: ([\w.]+)", text):
        return ConfigError(f"{found[1]}: a value is required; add {found[1]}=…")
    if found := re.search(r"full_key: ([\w.\[\]]+)", text):
        return ConfigError(f"{found[1]}: {text.splitlines()[0]}")
    return ConfigError(*[line.strip() for line in text.splitlines() if line.strip()][:4])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _near_key(key: str, keys: Collection[str]) -> str:
    """The settings of the same last word first (lr -> optimizer.lr), then those spelled nearly so."""
    last = key.rpartition(".")[2]
    same = [k for k in sorted(keys) if k.rpartition(".")[2] == last]
    if same and len(same) <= 3:
        return f" (did you mean {' or '.join(repr(k) for k in same)}?)"
    return did_you_mean(key, [k for k in keys if not key.startswith(f"{k}.")]) or did_you_mean(
        last, {k.rpartition(".")[2] for k in keys}
    )


def _settings(overrides: Sequence[str], config_name: str, config_dirs: Sequence) -> set[str]:
    """Every key and group that an override may name."""
    for attempt in (overrides, ()):
        try:
            plain = OmegaConf.to_container(_compose(attempt, config_name, config_dirs), resolve=False)
            return {where for where, _ in specs(plain) if where and "_target_" not in where} | _groups(config_dirs)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            continue
    return _groups(config_dirs)


def _groups(config_dirs: Sequence) -> set[str]:
    return {p.relative_to(d).as_posix() for d in (CONF_DIR, *map(Path, config_dirs)) for p in d.rglob("*") if p.is_dir()}


def _options(group: str, config_dirs: Sequence) -> list[str]:
    return sorted({p.stem for d in (CONF_DIR, *map(Path, config_dirs)) for p in (d / group).glob("*.yaml")})


# ---------------------------------------------------------------- check


def check(cfg: DictConfig | Mapping, config_name: str = "train") -> None:
    """Bind the keys of every `_target_` to its signature; raises ConfigError with all faults at once.

    Of a composed configuration the other keys are compared with those of conf/ too: nothing misspelled is passed over.
    """
    plain = resolved(cfg, missing=True)
    found = faults(plain)
    if OmegaConf.is_config(cfg):
        found = [*strangers(plain, OmegaConf.to_container(cfg, resolve=False), CONF_DIR, config_name), *found]
    if found:
        raise ConfigError(*found)


def resolved(cfg: DictConfig | ListConfig | Mapping, missing: bool = False) -> Any:
    """The configuration as plain dicts and lists, interpolations filled in; `missing` keeps `???` instead of raising."""
    if not OmegaConf.is_config(cfg):
        return copy.deepcopy(cfg)
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=not missing)
    except InterpolationToMissingValueError as error:
        if not missing or not error.full_key:
            raise _explained(error, (), "", ()) from error
        cfg = copy.deepcopy(cfg)
        OmegaConf.update(cfg, error.full_key, "???")  # what reads a value that is missing is missing itself
        return resolved(cfg, missing)
    except OmegaConfBaseException as error:
        raise _explained(error, (), "", ()) from error


# ---------------------------------------------------------------- build


def build(node: Any, /, *, trust: Collection[str] | None = None, **objects: Any) -> Any:
    """The object that a node describes, with `objects` passed to its constructor as they are (dataclasses too).

    A node with `_partial_: true` is finished by `objects`; without them it stays a partial. None or an empty node gives None.
    `trust` None is for the user's own yaml: any target. Anything else is for a loaded model (plain dicts): only classes of
    mmldm that a model is made of and exactly the names in `trust` are built, interpolations are refused. Raises ConfigError.
    """
    if node is None or (isinstance(node, Mapping) or OmegaConf.is_dict(node)) and not node:
        return None
    if trust is not None:
        _refuse(node, trust)
    if objects and "_target_" not in node:
        raise ConfigError(f"wanted a node with _target_ to pass {', '.join(objects)} to, got {sorted(map(str, node))}")
    options: dict[str, Any] = {"_convert_": "object"}
    if "_execution_whitelist_" in inspect.signature(instantiate).parameters:  # Hydra 1.4
        options["_execution_whitelist_"] = tuple(_names(node))
    if objects:
        options["_partial_"] = True
    try:
        built = instantiate(node, **options)
    except OmegaConfBaseException as error:
        raise _explained(error, (), "", ()) from error
    except (InstantiationException, ValueError) as error:
        _raise_cause(error)
    return built.func(*built.args, **{**built.keywords, **objects}) if objects else built


def _refuse(node: Any, trust: Collection[str]) -> None:
    if OmegaConf.is_config(node):
        raise TypeError("wanted a loaded model as plain dicts and lists, got an OmegaConf container")
    found = objections(node, trust)
    if found:
        names = sorted(str(n) for n in _names(node) if not is_target(n, trust))
        hint = [f"if you know and trust the author's code: --trust {' --trust '.join(names)}"] if names else []
        raise ConfigError("this model cannot be built safely:", *found, *hint)


def _names(node: Any) -> set:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return {v["_target_"] for _, v in specs(plain) if isinstance(v, Mapping) and isinstance(v.get("_target_"), str)}


def _raise_cause(error: Exception) -> None:
    """What the constructor said, with the place in the configuration; its own error where it is not about a value."""
    cause = error.__cause__ if isinstance(error, InstantiationException) else error
    where = re.search(r"full_key: (\S+)", "\n".join([str(error), *getattr(error, "__notes__", ())]))  # a note in Hydra 1.4
    prefix = f"{where[1]}: " if where else ""
    if cause is None:
        raise ConfigError(f"{prefix}{str(error).splitlines()[0]}") from error
    if type(cause) is ValueError:
        raise ConfigError(f"{prefix}{cause}") from cause
    raise cause
