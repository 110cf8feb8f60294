"""YAML configs from outside: what is refused before anything is made of them.

Plain YAML with text, numbers, lists and mappings; a small anchor may be used again. Which classes a config may name is
another matter, see `csrtrain.cli.ALLOWED_IMPORTS`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from csrtrain.files import check_file, shown

MOST_BYTES = 2**20
"""Of a config; ours have 3 kB."""
_MOST_KEPT = 2**22  # bytes of the config that a run kept: with what the command line said, and every default
_DEEPEST = 40  # lists and mappings within each other; ours: 7
_LONGEST = 4096  # characters of a text: the longest path; Python makes no integer of 4300 digits
_MOST_NODES = 10_000  # with what aliases stand for
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_GROUPS = ("config", "trainer")
_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))


@dataclass
class _Open:
    """A list or mapping that is being read: how many nodes it has, its anchor, and of a mapping the keys."""

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)
    key: str = ""


def check_config_file(path: Path) -> None:
    """Refuse a config that no parser should be given.

    Raises:
        ValueError: it is no regular file, too large, no YAML in UTF-8, nested too deep, has aliases that grow beyond
            all measure or hold themselves, a key twice in a mapping, tags that ask for Python objects, or the name of
            another config.
    """
    size = check_file(path).st_size
    if size > MOST_BYTES:
        raise ValueError(f"Expected a config of at most {MOST_BYTES} bytes, got {size} in {path}. Name a config.")
    try:
        _check_events(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        reason = shown(" ".join(str(error).split()))
        raise ValueError(f"Expected a config in plain YAML, got another in {path}: {reason}. Correct it.") from None


def read_run_config(path: Path) -> dict[str, Any]:
    """The config that `csrtrain fit` kept in a run directory.

    Raises:
        ValueError: it is damaged, or none of a run.
        OSError: it cannot be read.
    """
    if (size := path.stat().st_size) > _MOST_KEPT:
        raise ValueError(f"Expected the config of a run in {path}, got {size} bytes. Name a run directory.")
    try:
        tree = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected the config of a run in {path}, got a damaged file ({type(error).__name__}). Restore it."
        ) from None
    parts = [tree.get(key, {}) for key in ("trainer", "model", "data")] if isinstance(tree, dict) else [tree]
    for part in parts:
        if not isinstance(part, dict):
            kind = type(part).__name__
            raise ValueError(f"Expected the config of a run in {path}, got {kind}. Name a run directory.")
    assert isinstance(tree, dict)
    if not isinstance(callbacks := parts[0].get("callbacks"), list | None):
        kind = type(callbacks).__name__
        raise ValueError(f"Expected a list of callbacks in {path}, got {kind}. Name a run directory.")
    flatten(tree, path)
    return tree


def flatten(tree: Any, file: Path) -> dict[str, Any]:
    """Values of a config, or another description of a run, by their keys joined by dots.

    Raises:
        ValueError: there are more than 10,000, or one lies within itself; it names `file`.
    """
    found: dict[str, Any] = {}

    def walk(value: Any, prefix: str, depth: int) -> None:
        if len(found) > _MOST_NODES or depth > 50:
            raise ValueError(f"Expected the config of a run in {file}, got one without end. Name a run directory.")
        if isinstance(value, dict) and value:
            for key, one in value.items():
                walk(one, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
            for number, one in enumerate(value):
                walk(one, f"{prefix}.{number}", depth + 1)
        else:
            found[prefix] = value

    walk(tree, "", 0)
    return found


def _check_events(text: str) -> None:
    """Walk the text without building anything."""
    stack = [_Open(None, False)]
    sizes: dict[str, int] = {}  # nodes of each anchor
    events: Any = yaml.parse(text, Loader=_LOADER)
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent):
            if len(stack) == 1 and not isinstance(event, yaml.MappingStartEvent):
                raise ValueError(f"settings by name (key: value) are missing in line {line}")
            _check_node(event, stack[-1], sizes, line)
            if len(stack) == 2 and stack[1].key in _GROUPS and isinstance(event, yaml.ScalarEvent) and event.value:
                _check_group(event, stack[1], line)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > _DEEPEST:
                raise ValueError(f"line {line} is nested deeper than {_DEEPEST}")
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
            stack[-1].nodes += closed.nodes
            if closed.anchor:
                sizes[closed.anchor] = closed.nodes
        if stack[-1].nodes > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} values up to line {line}, with what aliases stand for")


def _check_group(event: Any, settings: _Open, line: int) -> None:
    """The parser would take the text for the name of another config, and read that without a look at it."""
    if settings.children % 2 == 0:
        raise ValueError(f"{settings.key} in line {line} is a text; write its settings here, not the name of a file")


def _check_node(event: Any, parent: _Open, sizes: dict[str, int], line: int) -> None:
    """A value or key in its list or mapping."""
    is_key = parent.is_mapping and parent.children % 2 == 0
    parent.children += 1
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in sizes:
            raise ValueError(f"the alias *{event.anchor} in line {line} stands in itself, or for nothing")
        parent.nodes += sizes[event.anchor]
        return
    if event.tag is not None and event.tag not in _TAGS and event.tag != "!":
        raise ValueError(f"the tag {event.tag} in line {line}, which could run code")
    if isinstance(event, yaml.ScalarEvent):
        parent.nodes += 1
        if len(event.value) > _LONGEST:
            raise ValueError(f"a text of {len(event.value)} characters in line {line}")
        if event.anchor:
            sizes[event.anchor] = 1
        if is_key:
            if event.value in parent.keys:
                raise ValueError(f"the key {event.value} in line {line} stands twice in one mapping")
            parent.keys.add(event.value)
            parent.key = event.value
    elif is_key:
        raise ValueError(f"a list or mapping as a key in line {line}")
