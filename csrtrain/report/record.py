"""What a run was computed with: environment, starts, config."""

import datetime
from collections.abc import Sequence
from typing import Any

import yaml

from csrtrain.config_files import flatten
from csrtrain.report import compare, words
from csrtrain.report.markup import Markup, escaped, joined, table, tag
from csrtrain.report.paths import Hidden
from csrtrain.report.shown import Shown


def environment(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    """Versions and hardware: of environment.json, without it the versions that the checkpoint holds."""
    columns: list[dict[str, Any]] = []
    for one in shown:
        run = one.run
        described = run.environment or {"packages": run.header.get("versions") or {}}
        columns.append(flatten(hidden.value(described), run.folder / "environment.json"))
    keys = list(dict.fromkeys(key for column in columns for key in column))
    heads = ["", *(one.label if len(shown) > 1 else "value" for one in shown)]

    def rows(wanted: Sequence[str]) -> list[list[object]]:
        return [[key.removeprefix("packages."), *(_plain(column.get(key)) for column in columns)] for key in wanted]

    keys = [key for key in keys if any(_plain(column.get(key)) for column in columns)]
    missing = [one.label for one in shown if not one.run.environment]
    hardware = [key for key in keys if key and not key.startswith("packages.") and key != "packages"]
    packages = [key for key in keys if key.startswith("packages.")]
    parts = [table("Hardware and settings", heads, rows(hardware))] if hardware else []
    if packages:
        inner = table("Versions of packages", heads, rows(packages))
        parts.append(tag("details", {}, tag("summary", {}, f"Versions of {len(packages)} packages"), inner))
    if missing:
        said = f"{', '.join(missing)}: no environment.json; versions are those that the checkpoint holds."
        parts.append(tag("p", {"class": "quiet"}, said))
    for one in shown:
        for later in one.run.environments:
            own = flatten(one.run.environment, one.run.folder / "environment.json")
            changed = [key for key in {**own, **later.content} if own.get(key) != later.content.get(key)]
            said = hidden.text(f"{one.run.name}, start of {later.when}: another environment ({', '.join(changed)}).")
            parts.append(tag("p", {}, said))
    return joined(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        counts = {one: value.count(one) for one in map(str, value)}
        return ", ".join(f"{one} x {value.count(one)}" if count > 1 else one for one, count in counts.items())
    return "" if value is None else str(value)


def starts(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    """When a run was begun, how often it was resumed, and what of its config each start changed."""
    rows = []
    for one in shown:
        run, before = one.run, one.run.config
        begun = [
            datetime.datetime.fromtimestamp(t).strftime("%Y-%m-%d %H:%M:%S") for t in (run.begun, run.written) if t
        ]
        rows.append([one.label, "1", begun[0] if begun else "", f"last row of metrics {begun[-1]}" if begun else ""])
        for number, start in enumerate(run.starts):
            changes = [
                f"{key}: {hidden.value(before.get(key), _key(key))} to "
                f"{hidden.value(start.content.get(key), _key(key))}"
                for key in dict.fromkeys([*before, *start.content])
                if before.get(key) != start.content.get(key)
            ]
            rows.append(
                [one.label, str(number + 2), start.when, "changed: " + "; ".join(changes) if changes else "same config"]
            )
            before = start.content
    if not rows:
        return Markup()
    counted = [f"{one.run.name}: resumed {words.times(len(one.run.starts))}." for one in shown if one.run.starts]
    said = " ".join(counted) or "No run was resumed." if len(shown) > 1 else " ".join(counted) or "Never resumed."
    heads = ["run", "start", "local time", "note"]
    return joined([tag("p", {}, said), tag("div", {"class": "long"}, table("Starts", heads, rows))])


def _key(key: str) -> str:
    return key.rpartition(".")[2]


def configs(shown: Sequence[Shown], hidden: Hidden) -> Markup:
    parts: list[Markup] = []
    for is_head, kind in ((False, "pretraining"), (True, "heads")):
        part = [one for one in shown if one.run.is_head == is_head]
        if len(part) > 1:
            parts.append(_different(part, kind, hidden))
    for one in shown:
        if one.run.tree:
            text = yaml.safe_dump(hidden.value(one.run.tree), sort_keys=False, allow_unicode=True)
            name = f"Config of {one.label}" if len(shown) > 1 else "Config as resolved at the first start"
            parts.append(tag("details", {}, tag("summary", {}, name), tag("pre", {"tabindex": "0"}, escaped(text))))
    if parts:
        parts.append(
            tag(
                "p",
                {"class": "quiet"},
                "Paths and names of people are not shown: each stands as a number, the same one for the same place.",
            )
        )
    return joined(parts)


def _different(shown: Sequence[Shown], kind: str, hidden: Hidden) -> Markup:
    """The keys in which configs of one kind differ."""
    runs = [one.run for one in shown]
    rows = [
        [key, *(_plain(hidden.value(run.config[key], _key(key))) if key in run.config else "-" for run in runs)]
        for key in compare.different_keys(runs)
    ]
    if not rows:
        return tag("p", {}, f"The configs of {kind} are the same.")
    caption = f"What differs between the configs of {kind}"
    return tag("div", {"class": "long"}, table(caption, ["key", *(one.label for one in shown)], rows))
