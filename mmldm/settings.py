"""Which settings conf/ has: what is written elsewhere in a configuration would be read by nobody."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmldm.targets import specs

__all__ = ["strangers"]

NAMED_BY_THE_USER = ("codec", "data.sources", "diffusion.shift", "logger", "loss.metrics")  # keys: streams, loggers …
GLOBAL = re.compile(r"^# @package _global_", re.M)


def strangers(plain: Mapping[str, Any], raw: Any, conf: Path, config_name: str) -> list[str]:
    """Keys outside `_target_` nodes that neither conf/ has nor an interpolation of `raw` reads, and nodes that lost their
    `_target_`, one line each."""
    known, built = _known(conf, config_name)
    known |= {name for where, value in specs(raw) for name in _read(where, value)}
    return list(_walk(plain, "", known, built))


def _walk(node: Mapping[str, Any], where: str, known: set[str], built: set[str]) -> Iterator[str]:
    if "_target_" in node or where in NAMED_BY_THE_USER:
        return
    if where in built and node:
        yield f"{where}: wanted a node with _target_, got only {', '.join(map(str, node))}; choose a file of conf/ for it"
        return
    at = f"{where}." if where else ""
    siblings = {name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == where}
    for key, value in node.items():
        here = f"{at}{key}"
        if here not in known:
            near = difflib.get_close_matches(str(key), siblings, 1)
            hint = f"did you mean '{at}{near[0]}'?" if near else f"choose from {', '.join(sorted(siblings))}"
            yield f"{here}: there is no such setting ({hint})"
        elif isinstance(value, Mapping):
            yield from _walk(value, here, known, built)


def _read(where: str, value: Any) -> Iterator[str]:
    """The dotted names that the interpolations of one value read, and the nodes they lie in."""
    if not isinstance(value, str):
        return
    for dots, name in re.findall(r"\$\{(\.*)([A-Za-z_][\w.]*)\}", value):
        base = where.split(".")[: -len(dots)] if dots else []
        parts = [*base, *name.split(".")]
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _known(conf: Path, config_name: str) -> tuple[set[str], set[str]]:
    """The dotted names of every setting in conf/, and of the nodes that its files describe with `_target_`."""
    known, built = set(), set()
    for file in [conf / f"{config_name}.yaml", *(f for f in conf.rglob("*.yaml") if f.parent != conf)]:
        try:
            text = file.read_text(encoding="utf-8")
            node = yaml.safe_load(text)
        except (OSError, yaml.YAMLError):
            continue
        rooted = file.parent == conf or GLOBAL.search(text)
        package = "" if rooted else file.parent.relative_to(conf).as_posix().replace("/", ".")
        group = file.parent.relative_to(conf).parts
        known |= {".".join(group[: i + 1]) for i in range(len(group)) if not rooted}
        if isinstance(node, Mapping):
            names = {name for name, _ in specs(node, package) if name}
            known |= {name for name in names if name.split(".")[0] not in ("defaults", "hydra")}
            built |= {name.removesuffix("._target_") for name in names if name.endswith("._target_")}
    return known, built
