"""What a `_target_` name means: the object it names, whether it may be built, and whether its keys fit its signature."""

from __future__ import annotations

import ast
import collections.abc
import difflib
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["did_you_mean", "faults", "is_target", "objections", "public_classes", "resolve", "specs"]

SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
MODEL_PARTS = ("codec", "conditioner", "denoiser", "diffusion", "media", "model", "nn")  # what a trained model is made of
SCALARS = (str, bool, int, float)


def did_you_mean(word: str, choices: Collection[str], cutoff: float = 0.6) -> str:
    """The end of an error message: ` (did you mean 'width'?)`, or nothing where no choice is near."""
    near = difflib.get_close_matches(word, list(choices), 2, cutoff)
    return f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""


def specs(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested plain configuration with its dotted path, containers before what they hold."""
    yield where, node
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from specs(value, f"{where}.{key}" if where else str(key))


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


# ---------------------------------------------------------------- names


@functools.cache
def public_classes(parts: tuple[str, ...] | None = None) -> frozenset[str]:
    """Exact names of mmldm's public classes, read from the source without importing it; `parts` chooses folders or modules."""
    root, names = Path(__file__).parent, set()
    for file in root.rglob("*.py"):
        module = file.relative_to(root).with_suffix("").parts
        if any(part.startswith("_") for part in module) or (parts is not None and module[0] not in parts):
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        classes = [n.name for n in body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        names.update(".".join(("mmldm", *module, name)) for name in classes)
    return frozenset(names)


def _short(name: str) -> str:
    """mmldm.codec.conv_vae.ConvVAE -> mmldm.codec.ConvVAE, as a folder re-exports it."""
    words = name.split(".")
    return ".".join((*words[:2], words[-1]))


@functools.cache
def _model_names() -> frozenset[str]:
    names = public_classes(MODEL_PARTS)
    return names | {_short(name) for name in names}


def is_target(name: Any, trust: Collection[str] | None = None) -> bool:
    """Whether a configuration may build `name`: anything where `trust` is None (the user's own yaml), else exactly the public
    classes that a trained model is made of and the names in `trust`."""
    trust = (trust,) if isinstance(trust, str) else trust
    return isinstance(name, str) and (trust is None or name in trust or name in _model_names())


def resolve(name: Any) -> Any:
    """The object of a dotted name `package.module.Class`; raises ValueError that says which part is missing."""
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise ValueError(f"wanted a name like package.module.Class, got {name!r}")
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"{module} needs {error.name}, which is not installed") from error
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                raise ValueError(f"there is no {name}{_near_name(name)}")
            found = getattr(found, attribute)
        return found
    raise ValueError(f"there is no {name}{_near_name(name)}")


def _near_name(name: str) -> str:
    """The public class of the same last name, else one spelled nearly so."""
    last = {n.rpartition(".")[2]: n for n in sorted(public_classes())}
    near = difflib.get_close_matches(name.rpartition(".")[2], last, 1, 0.75)
    return f" (did you mean {last[near[0]]!r}?)" if near else did_you_mean(name, public_classes(), 0.8)


def objections(node: Any, trust: Collection[str]) -> list[str]:
    """Why a loaded model's configuration must not be built, one line per reason; imports nothing that is not allowed."""
    found = []
    for where, value in specs(node):
        if isinstance(value, Mapping):
            odd = [k for k in value if not isinstance(k, str) or (k.startswith("_") and k not in ("_target_", "_partial_"))]
            found += [f"{where or 'model'}: {key!r} is not a key of a trained model" for key in odd]
            found += [f"{where or 'model'}: key {key!r} holds ${{…}}" for key in value if "${" in str(key)]
            if not isinstance(value.get("_partial_", False), bool):
                found.append(f"{where or 'model'}: wanted _partial_ true or false, got {value['_partial_']!r}")
            if "_target_" in value and not is_target(value["_target_"], trust):
                found.append(f"{where or 'model'}: {value['_target_']!r} is not a part of mmldm")
        elif isinstance(value, str) and "${" in value:
            found.append(f"{where}: interpolation {value!r}")
        elif value is not None and not isinstance(value, SCALARS + (list, tuple)):
            found.append(f"{where}: {type(value).__name__} is not plain data")
    return found or _false_names(node)


def _false_names(node: Any) -> list[str]:
    """Allowed names that are not the class they claim to be: replaced, or re-exported from elsewhere."""
    found = []
    for where, spec in specs(node):
        if not _is_spec(spec) or spec["_target_"] not in _model_names():
            continue
        name = spec["_target_"]
        try:
            target = resolve(name)
        except ValueError as error:
            found.append(f"{where or 'model'}: {error}")
            continue
        own = f"{target.__module__}.{target.__qualname__}" if isinstance(target, type) else ""
        if own not in public_classes(MODEL_PARTS) or name not in (own, _short(own)):
            found.append(f"{where or 'model'}: {name!r} is not the class of that name")
    return found


# ---------------------------------------------------------------- signatures


def faults(node: Any) -> list[str]:
    """Everything in a plain configuration that cannot be built, one line each: targets that do not exist, keys that their
    signature does not have, keys that are missing, values of a wrong simple type."""
    found = []
    open_slots = set()
    for where, value in specs(node):
        if _is_spec(value):
            if value.get("_partial_", False) is True:
                open_slots |= {f"{where}.{key}" if where else str(key) for key in value}
            found += _spec_faults(where, value)
        elif value == "???" and where not in open_slots:
            found.append(f"{where}: a value is required; add {where}=…")
    return found


def _spec_faults(where: str, spec: Mapping) -> list[str]:
    at = f"{where}." if where else ""
    try:
        target = resolve(spec["_target_"])
    except (ValueError, ImportError) as error:
        return [f"{at}_target_: {error}"]
    if not callable(target):
        return [f"{at}_target_: {spec['_target_']} cannot be called"]
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature to compare with
        return []
    kinds = {p.kind for p in parameters.values()}
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {key: value for key, value in spec.items() if key not in SPECIAL}
    name, found = getattr(target, "__name__", spec["_target_"]), []
    for key in given:
        if key not in named and inspect.Parameter.VAR_KEYWORD not in kinds:
            near = did_you_mean(str(key), named) or f" (it has {', '.join(named) or 'none'})"
            found.append(f"{at}{key}: {name} has no parameter {key!r}{near}")
    positional = len(spec.get("_args_") or ())
    for key in [] if spec.get("_partial_", False) is True else list(named)[positional:]:
        if key not in given and named[key].default is inspect.Parameter.empty:
            found.append(f"{at}{key}: {name} needs a value for {key!r}")
    hints = _hints(target)
    for key, value in given.items():
        if key in named and key in hints and value != "???" and not _fits(value, hints[key], named[key].default):
            choices = _literals(hints[key])
            wanted = f"one of {', '.join(choices)}" if choices else _words(hints[key])
            found.append(f"{at}{key}: wanted {wanted}, got {_words(value)}{did_you_mean(str(value), choices, 0.4)}")
    return found


def _literals(hint: Any) -> list[str]:
    """The values that an annotation lists; none where it allows something else too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return [str(value) for value in arguments]
    if origin not in (typing.Union, types.UnionType):
        return []
    parts = [_literals(a) for a in arguments if a is not type(None)]
    return list(dict.fromkeys(value for part in parts for value in part)) if all(parts) else []


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    except Exception:  # annotations that only a type checker can evaluate: nothing to compare with
        return {}


def _words(value: Any) -> str:
    if _is_spec(value):
        return str(value["_target_"]).rpartition(".")[2]
    if isinstance(value, type) and not typing.get_args(value):
        return value.__name__
    if typing.get_origin(value) is not None:
        text = re.sub(r"\b(\w+\.)+(?=\w)", "", str(value))
        return text if len(text) <= 100 else f"{text[:99]}…"
    return repr(value)


def _fits(value: Any, hint: Any, default: Any = inspect.Parameter.empty) -> bool:
    """Whether a plain value can be what the annotation says; True wherever that is not easy to tell."""
    if hint in (Any, object):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return default is None or hint in (None, type(None), Any, object) or type(None) in arguments
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if _is_spec(value):
        return _builds(value, origin or hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | Path)
    kind = origin or hint
    if not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return True
    if kind is collections.abc.Callable or kind is type:
        return not isinstance(value, (*SCALARS, list))
    if isinstance(value, Mapping):
        return issubclass(dict, kind) and all(_fits(v, arguments[1]) for v in value.values() if len(arguments) == 2)
    if isinstance(value, list | tuple):
        return _fits_items(value, kind, arguments)
    return isinstance(value, kind) and not (isinstance(value, str) and kind is not str)


def _fits_items(values: list | tuple, kind: type, arguments: tuple) -> bool:
    if not issubclass(list, kind) and not issubclass(tuple, kind) and kind not in (set, frozenset):
        return False
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(values) == len(arguments) and all(_fits(v, a) for v, a in zip(values, arguments, strict=True))
    return not arguments or all(_fits(v, arguments[0]) for v in values)


def _builds(spec: Mapping, hint: Any) -> bool:
    """Whether what a nested `_target_` builds can be of the annotated class; unknown targets are reported elsewhere."""
    if spec.get("_partial_", False) or not isinstance(hint, type) or hint is object or getattr(hint, "_is_protocol", False):
        return True
    try:
        target = resolve(spec["_target_"])
    except (ValueError, ImportError):
        return True
    return not isinstance(target, type) or issubclass(target, hint)
