"""Read a ``Config`` from its layers and say where every value came from.

defaults < method < preset < TOML file < ``APTS_*`` environment < command line. Method and preset are looked for in all layers first,
highest wins; their values then sit just above the defaults, so an explicit key of any layer beats them. A key is written
``[local] iters = 7`` in a file, ``APTS_LOCAL__ITERS=7`` in the environment and ``--local.iters 7`` on the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from apts_mpi import presets
from apts_mpi.config import Config
from apts_mpi.hints import did_you_mean
from apts_mpi.native.extension import SWITCH
from apts_mpi.regular import read_toml

Layer = dict[str, tuple[Any, str]]  # dotted key -> value, where it was given
PREFIX, WORDS = "APTS_", ("resume",)  # words: options of train that are no settings


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of bounds; the message names the key and its source."""


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, type, default and one-line meaning."""

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def expects(self) -> str:  # for help and errors
        if get_origin(self.kind) is Literal:
            return "{" + ",".join(get_args(self.kind)) + "}"
        return {int: "INT", float: "FLOAT", bool: "{true,false}", str: "TEXT"}.get(self.kind, "INT,INT,...")


@dataclass(frozen=True)
class Settings:
    """A resolved config and, for each dotted key, where its value came from."""

    config: Config
    sources: dict[str, str]


def sections() -> dict[str, type[Any]]:
    """Section name -> its dataclass, in the order of ``Config``."""
    return {entry.name: cast("type[Any]", entry.default_factory) for entry in fields(Config) if "meaning" not in entry.metadata}


@cache
def keys() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of ``config``."""
    found = {}
    for prefix, owner in [("", Config), *((name + ".", cls) for name, cls in sections().items())]:
        kinds = get_type_hints(owner)
        for entry in fields(owner):
            if "meaning" in entry.metadata:
                name = prefix + entry.name
                found[name] = Key(name, kinds[entry.name], entry.default, entry.metadata["meaning"])
    return found


def as_variable(name: str) -> str:
    """``local.iters`` as the environment writes it: ``APTS_LOCAL__ITERS``."""
    return PREFIX + name.upper().replace(".", "__")


def _suggestion(name: str, write: Callable[[str], str]) -> str:
    """"; did you mean X?" for an unknown key, or nothing if no key is like it."""
    section, _, tail = name.rpartition(".")
    tails = {key: key.rpartition(".")[2] for key in keys()}
    same_tail = [key for key in tails if tails[key] == tail and section not in sections()]
    close_tail = get_close_matches(tail, tails.values(), 1)
    best = same_tail or get_close_matches(name, [*keys(), *WORDS], 1) or [key for key in tails if tails[key] in close_tail]
    return f"; did you mean {' or '.join(write(key) for key in best[:3])}?" if best else ""


def _look_up(name: str, source: str, write: Callable[[str], str] = str) -> Key:
    """The key called ``name``; SettingsError with a suggestion if there is none."""
    if name in sections():
        example = next(key for key in keys() if key.startswith(name + "."))
        raise SettingsError(f"{source}: {name} is a section; give one of its keys, such as {write(example)}")
    if name not in keys():
        raise SettingsError(f"{source}: unknown key {name}{_suggestion(name, write)}")
    return keys()[name]


def _from_text(kind: Any, text: str) -> Any:
    """The text of a variable or an option as the value a TOML file would give."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    if get_origin(kind) is tuple:
        return [int(part) for part in re.split(r"[,\s]+", text.strip("[]() ")) if part]
    return kind(text) if kind in (int, float) else text


def _has_kind(kind: Any, value: Any) -> bool:
    """Whether a TOML value has the type of a key; nan, integers above 64 bits and text that is not UTF-8 have none."""
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_has_kind(int, item) for item in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if type(value) is int:
        return kind in (int, float) and abs(value) < 2**63
    if kind is float:
        return type(value) is float and not math.isnan(value)
    if kind is str:
        return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()
    return type(value) is kind


def _typed(key: Key, value: Any, source: str) -> Any:
    """``value`` in the type of ``key``; SettingsError naming both and the source."""
    if not _has_kind(key.kind, value):
        hint = did_you_mean(str(value), get_args(key.kind)) if get_origin(key.kind) is Literal else ""
        raise SettingsError(f"{source}: {key.name} expects {key.expects}, got {value!r}{hint}")
    kind = get_origin(key.kind) or key.kind
    return kind(value) if kind in (tuple, float) else value


def _text_layer(given: Iterable[tuple[str, str | None, str]], write: Callable[[str], str]) -> Layer:
    """A layer from (dotted key, text, source) triples; no text is an option without its value."""
    layer: Layer = {}
    for name, text, source in given:
        key = _look_up(name, source, write)
        if text is None:
            raise SettingsError(f"{source}: a value is missing, {key.expects}")
        try:
            value = _from_text(key.kind, text)
        except ValueError:
            value = text  # _typed refuses it with the right words
        layer[name] = _typed(key, value, source), source
    return layer


def from_file(path: str | Path) -> Layer:
    """The layer of a TOML file: sections are tables, ``preset`` and ``method`` stand at the top."""
    source = f"file {path}"
    try:
        tree = read_toml(Path(path))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{source}: cannot be read: {error.strerror if isinstance(error, OSError) else error}") from None
    return from_tree(tree, source)


def from_tree(tree: Mapping[str, Any], source: str) -> Layer:
    """The layer of nested dicts: a file's tables, or keywords such as ``stop={"epochs": 4}``."""
    layer: Layer = {}
    for top, table in tree.items():
        inside = isinstance(table, dict) and (table or top in sections())
        for name, value in {f"{top}.{tail}": value for tail, value in table.items()}.items() if inside else [(top, table)]:
            layer[name] = _typed(_look_up(name, source), value, source), source
    return layer


def from_environment(environ: Mapping[str, str]) -> Layer:
    """The layer of the ``APTS_*`` variables; APTS_NATIVE alone is no setting, it chooses what computes the same."""
    names = {name: name[len(PREFIX) :].lower().replace("__", ".") for name in sorted({*environ} - {SWITCH}) if name.startswith(PREFIX)}
    return _text_layer(((key, environ[name], f"environment {name}") for name, key in names.items()), as_variable)


def from_options(options: Iterable[tuple[str, str | None]]) -> Layer:
    """The layer of the command line, from (dotted key, text) pairs; the last of equal keys wins."""
    return _text_layer(((name, text, f"command line --{name}") for name, text in options), "--{}".format)


def resolve(*layers: Layer) -> Settings:
    """Layers, lowest first, on top of the defaults and of what the method and the preset they name bring."""
    given = {name: entry for layer in layers for name, entry in layer.items()}
    merged: Layer = {name: (key.default, "default") for name, key in keys().items()}
    for source, tree in presets.layers(*(given.get(top, merged[top])[0] for top in ("preset", "method"))):
        merged |= from_tree(tree, source)
    merged |= given
    return Settings(_build(merged), {name: source for name, (_, source) in merged.items()})


def _build(merged: Layer) -> Config:
    """The config; a value out of bounds is refused with the source of every explicit key of its section."""
    parts: dict[str, Any] = {name: value for name, (value, _) in merged.items() if "." not in name}
    for section, owner in sections().items():
        inside = {name: entry for name, entry in merged.items() if name.startswith(section + ".")}
        given = [f"{name} from {source}" for name, (_, source) in inside.items() if source != "default"]
        try:
            parts[section] = owner(**{name.partition(".")[2]: value for name, (value, _) in inside.items()})
        except ValueError as error:
            raise SettingsError(f"{error} ({'; '.join(given) or 'defaults'})") from None
    try:
        return Config(**parts)
    except ValueError as error:  # sections that do not fit each other: the message names the keys
        given = [f"{name} from {source}" for name, (_, source) in merged.items() if name in str(error) and source != "default"]
        raise SettingsError(f"{error} ({'; '.join(given)})") from None


def values(config: Config) -> dict[str, Any]:
    """Every value by its dotted key, checked against the key's type."""
    return {name: _typed(key, reduce(getattr, name.split("."), cast("Any", config)), "config") for name, key in keys().items()}


def to_json(config: Config) -> str:
    """One line of JSON from which ``from_json`` gives an equal config on another rank."""
    return json.dumps(values(config), sort_keys=True)


def from_json(text: str) -> Config:
    """The config that ``to_json`` wrote; SettingsError if its keys are not exactly those of this version."""
    given = json.loads(text)
    if odd := given.keys() ^ keys().keys():
        raise SettingsError(f"shared settings: keys of one rank only: {', '.join(sorted(odd))}; install one version everywhere")
    return _build({name: (_typed(key, given[name], "shared settings"), "shared settings") for name, key in keys().items()})


def digest(config: Config) -> str:
    """SHA-256 of ``to_json``: equal on all ranks, runs and machines if and only if every value is."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def as_toml(value: Any) -> str:
    """A bool, int, float, text or tuple of int in TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def to_toml(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """The config as a TOML file that reads back to the same values, each with its source as a comment."""
    lines, section = [], ""
    for name, value in values(config).items():
        before, _, tail = name.rpartition(".")
        if before != section:
            lines += ["", f"[{before}]"]
            section = before
        source = "".join(c if c.isprintable() else "?" for c in (sources or {}).get(name, ""))
        lines.append(f"{f'{tail} = {as_toml(value)}':<32}" + f"  # {source}" if source else f"{tail} = {as_toml(value)}")
    return "\n".join(lines) + "\n"
