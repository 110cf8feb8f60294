"""The page: in words first, then figures and tables."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import csrtrain
from csrtrain.report import compare, words
from csrtrain.report.curves import curves, monitors
from csrtrain.report.evaluations import evaluation
from csrtrain.report.folders import Evaluation, Run
from csrtrain.report.markup import Markup, joined, table, tag
from csrtrain.report.paths import Hidden
from csrtrain.report.ratings import heads
from csrtrain.report.record import configs, environment, starts
from csrtrain.report.shown import Shown, value

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the browser itself asks for nothing outside
_SIGNS = {"good": "good", "warning": "attention", "bad": "fault", "plain": "note"}


class Picture(NamedTuple):
    """A PNG and what it shows."""

    title: str
    png: bytes


def page(found: Sequence[Run | Evaluation], pictures: Mapping[str, Sequence[Picture]], now: float) -> str:
    """The whole HTML text.

    Args:
        found: runs and evaluations.
        pictures: of runs, by name.
        now: seconds since 1970.
    """
    hidden = Hidden()
    runs = [one for one in found if isinstance(one, Run)]
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    groups = compare.seed_groups(runs)
    by_group = sum(len(group) > 1 for group in groups) > 1  # several configs with several seeds
    color = {number: k if by_group else number for k, group in enumerate(groups) for number in group}
    shown = [
        Shown(run, number + 1, color[number], f"{number + 1} {run.name}" if len(runs) > 1 else run.name)
        for number, run in enumerate(runs)
    ]
    pretrained, fitted = ([one for one in shown if one.run.is_head == is_head] for is_head in (False, True))
    sections = [
        ("In words", _in_words(shown, hidden, now)),
        ("Final values", joined([_final_values(part, groups) for part in (pretrained, fitted)])),
        ("Curves", curves(pretrained)),
        ("Collapse", monitors(pretrained)),
        ("Agreement with ratings", heads(fitted)),
        ("Evaluations", joined([evaluation(one, hidden) for one in evaluations])),
        ("Images", _pictures(pictures)),
        ("Environment", environment(shown, hidden)),
        ("Starts", starts(shown, hidden)),
        ("Config", configs(shown, hidden)),
    ]
    filled = [(title, content) for title, content in sections if content]
    links = [tag("a", {"href": f"#{_anchor(title)}"}, title) for title, _ in filled]
    counts = [
        f"{len(part)} {name}{'s' if len(part) > 1 else ''}"
        for part, name in ((runs, "run"), (evaluations, "evaluation"))
        if part
    ]
    made = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"csrtrain report: {', '.join(one.name for one in found)}"
    head = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("link", {"rel": "icon", "href": "data:,"}),
        tag("title", {}, title[:200]),
        tag("style", {}, Markup(files("csrtrain.report").joinpath("style.css").read_text())),
    ]
    body = [
        tag(
            "header",
            {},
            tag("h1", {}, "csrtrain report"),
            tag("p", {"class": "quiet"}, f"{' and '.join(counts)}. Made {made} by csrtrain {csrtrain.__version__}."),
            tag("nav", {"aria-label": "Sections"}, *links),
        ),
        tag("main", {}, *(_section(title, content) for title, content in filled)),
    ]
    html = tag("html", {"lang": "en"}, tag("head", {}, *head), tag("body", {}, *body))
    return f"<!DOCTYPE html>\n{html}\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _section(title: str, content: Markup) -> Markup:
    return tag("section", {"id": _anchor(title)}, tag("h2", {}, title), content)


def _in_words(shown: Sequence[Shown], hidden: Hidden, now: float) -> Markup:
    cards = []
    for one in shown:
        said = [
            tag("li", {"class": verdict.kind}, tag("b", {}, _SIGNS[verdict.kind]), verdict.text)
            for verdict in words.verdicts(one.run, now)
        ]
        facts = [
            part for name, text in words.facts(one.run, hidden) for part in (tag("dt", {}, name), tag("dd", {}, text))
        ]
        cards.append(
            tag(
                "article",
                {"class": "card"},
                tag("h3", {}, one.label),
                tag("ul", {"class": "verdicts"}, *said),
                tag("dl", {}, *facts),
            )
        )
    return tag("div", {"class": "cards"}, *cards) if cards else Markup()


def _final_values(shown: Sequence[Shown], groups: Sequence[Sequence[int]]) -> Markup:
    """Runs of one kind beside each other, and what they have in mean and spread where only the seed differs."""
    runs = [one.run for one in shown]
    found = compare.measures(runs)
    if len(runs) < 2 or not found:
        return Markup()
    rows: list[list[object]] = []
    if not runs[0].is_head:
        rows.append(["steps", *(f"{run.steps:,}" for run in runs)])
    marked = False
    for measure in found:
        winners = compare.best(runs, measure)
        marked = marked or bool(winners)
        values = [value(run, measure) for run in runs]
        marks = [tag("strong", {"class": "best"}, f"{text} best") for text in values]
        rows.append([measure, *(marks[k] if k in winners else text for k, text in enumerate(values))])
    what = "Heads" if runs[0].is_head else "Pretraining"
    parts = [table(f"{what}: last value of each measure", ["measure", *(one.label for one in shown)], rows)]
    said = (
        "Best is marked where values compare: agreement with the same ratings or labels, of different configs."
        if marked
        else ""
    )
    if "train/loss" in found:
        said += " A loss compares only runs of one method, temperature and batch, and is not marked."
    parts.append(tag("p", {"class": "quiet"}, said) if said else Markup())
    members = [[one for one in shown if one.number - 1 in group] for group in groups]
    several = [group for group in members if len(group) > 1]
    if several:
        tops = [
            f"runs {', '.join(str(one.number) for one in group)} (seeds "
            f"{', '.join(str(one.run.config.get('seed_everything', '?')) for one in group)})"
            for group in several
        ]
        spreads = [
            [compare.mean_and_spread([words.last(one.run.curves.get(name)) for one in group]) for group in several]
            for name in found
        ]
        body = [[name, *cells] for name, cells in zip(found, spreads, strict=True) if any(cells)]
        caption = f"{what}: runs that differ in their seed alone, mean ± standard deviation (runs)"
        parts.append(table(caption, ["measure", *tops], body))
    return joined(parts)


def _pictures(pictures: Mapping[str, Sequence[Picture]]) -> Markup:
    figures = []
    for name, of_run in pictures.items():
        for picture in of_run:
            caption = f"{name}: {picture.title}"
            source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
            image = tag("img", {"src": source, "alt": caption})
            inner = tag("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, image)
            figures.append(tag("figure", {"class": "wide"}, tag("figcaption", {}, caption), inner))
    return tag("div", {"class": "charts"}, *figures) if figures else Markup()
