"""What a dialect can do is read off the dialect, so this table cannot lie."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from crmclient.cli.terminal import json_line
from crmclient.dialect import COMPLETE, CREATE, READ, UPDATE, Dialect, Survives, Verb
from crmclient.registry import dialect, dialect_names


def letters(through: Survives) -> str:
    """How a field travels: r read, c create, u update, w both, d by completing."""
    writes = "w" if CREATE in through and UPDATE in through else "c" * (CREATE in through) + "u" * (UPDATE in through)
    return "r" * (READ in through) + writes + "d" * (COMPLETE in through and not writes)


def verbs(spoken: Dialect, entity: type[Any]) -> list[Verb]:
    """What the dialect can do with a kind of row, in the order of the verbs."""
    can = spoken.capabilities.get(entity, frozenset[Verb]())
    return [verb for verb in Verb if verb in can]


def fields(spoken: Dialect, entity: type[Any]) -> dict[str, str]:
    """The neutral fields a kind of row carries, each with its letters."""
    resource = spoken.resources.get(entity)
    return {} if resource is None else {name: letters(through) for name, through in resource.fields.items()}


def entities(spoken: Sequence[Dialect]) -> list[type[Any]]:
    """Every kind of row that any of them has, in the order they tell them."""
    return list(dict.fromkeys(entity for each in spoken for entity in each.resources))


@click.command("dialects")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--fields", "with_fields", is_flag=True, help="The neutral fields too: r read, c create, u update, w both."
)
@click.option("--markdown", is_flag=True, help="A table for a page: the README's is this one.")
def show_dialects(as_json: bool, with_fields: bool, markdown: bool) -> None:
    """What each installed dialect can do with each kind of row."""
    spoken = [dialect(name) for name in dialect_names()]
    if markdown:
        click.echo(_page(spoken, with_fields), nl=False)
        return
    if as_json:
        click.echo(json_line({each.name: _tree(each) for each in spoken}))
        return
    table = Table(title="What each dialect can do", title_justify="left", show_lines=with_fields)
    table.add_column("")
    for each in spoken:
        table.add_column(f"{each.name} ({each.title})", overflow="fold")
    for entity in entities(spoken):
        table.add_row(entity.__name__, *(_cell(each, entity, with_fields) for each in spoken))
    Console(highlight=False).print(table)


def _page(spoken: Sequence[Dialect], with_fields: bool) -> str:
    lines = [["", *(f"{each.title} (`{each.name}`)" for each in spoken)], ["---"] * (len(spoken) + 1)]
    for entity in entities(spoken):
        lines.append([entity.__name__, *(_cell(each, entity, with_fields).replace("\n", "<br>") for each in spoken)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(spoken: Dialect, entity: type[Any], with_fields: bool) -> str:
    told = " ".join(verbs(spoken, entity)) or "-"
    if with_fields and (carried := fields(spoken, entity)):
        told += "\n" + ", ".join(f"{name} {through}" for name, through in carried.items())
    return told


def _tree(spoken: Dialect) -> dict[str, Any]:
    return {
        "title": spoken.title,
        "credentials": [scheme.credentials.__name__ for scheme in spoken.auth],
        "rates": [{"limit": rate.limit, "seconds": rate.seconds, "scope": rate.scope} for rate in spoken.rate],
        "entities": {
            entity.__name__: {"verbs": verbs(spoken, entity), "fields": fields(spoken, entity)}
            for entity in spoken.resources
        },
    }
