"""What is known of the tables of a database: keys, links, times, types; and what is asked of it: the task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from repertory.errors import DataError, nearest

Answer = Literal["binary", "multiclass", "multilabel", "regression", "link"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
TYPES = ("numerical", "categorical", "multicategorical", "timestamp", "text_embedded", "ignore")
"""What a column may be said to be; ``ignore`` leaves it out."""
OWN = "repertory_"
"""Tables whose names begin so were written back by us and are not read."""
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}


@dataclass(frozen=True)
class TableSchema:
    """One table.

    Attributes:
        key: the primary key, or None.
        time: when a row became known, or None where it always was.
        links: foreign keys: column -> table whose primary key it holds.
        types: of columns, where the inferred type is not right (one of ``TYPES``).
        read: what reads it, where it lies in a file of another name.
    """

    key: str | None = None
    time: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    read: str = ""

    @property
    def keys(self) -> set[str]:
        """Columns that say which row it is or which it points at: no features."""
        return {*self.links, *([self.key] if self.key else [])}

    @classmethod
    def of(cls, name: str, plain: Any) -> TableSchema:
        """From a YAML entry ``{key: id, time: placed, links: {customer_id: customers}, types: {note: ignore}}``.

        Raises:
            DataError: an unknown word, with the nearest known one.
        """
        content = dict(plain or {})
        known = {"key", "time", "links", "types", "file"}
        for word in content:
            if word not in known:
                raise DataError(f"schema: table '{name}': unknown word '{word}'{nearest(word, known)}")
        for column, kind in (content.get("types") or {}).items():
            if kind not in TYPES:
                raise DataError(f"schema: {name}.{column}: unknown type '{kind}'{nearest(str(kind), TYPES)}")
        return cls(
            content.get("key"), content.get("time"), dict(content.get("links") or {}),
            dict(content.get("types") or {}), content.get("file", ""),
        )  # fmt: skip

    def updated(self, other: TableSchema) -> TableSchema:
        """This, with whatever the other says."""
        return TableSchema(
            other.key or self.key, other.time or self.time, {**self.links, **other.links},
            {**self.types, **other.types}, other.read or self.read,
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is asked: of a row of ``entity`` at a time, the ``target``.

    Attributes:
        entity: the table.
        column: the column of the task table with the entity's primary key; time, target: the other two.
        answer: what the target is; None leaves it to the values.
        destination: of ``link``, the table whose primary keys the target lists.
        k: of ``link``, how many destinations are asked for.
        sql: makes the task table, with ``seed_times(time)`` and ``$window`` at hand (see ``tasks.task_table``).
        window: seconds that the target looks ahead; 0 where the source says nothing.
        val, test: where the validation and the test part begin (ISO 8601), and
        evaluations: at most so many seed times of each.
    """

    entity: str
    column: str = ""
    time: str = "time"
    target: str = "target"
    answer: Answer | None = None
    destination: str = ""
    k: int = 10
    sql: str = ""
    file: str = ""
    window: int = 0
    val: str = ""
    test: str = ""
    evaluations: int = 1
    name: str = ""

    @classmethod
    def of(cls, name: str, plain: Any) -> Task:
        """From a YAML entry with these names (``window: 30 days``).

        Raises:
            DataError: an unknown word, no entity, or an unknown answer.
        """
        content = dict(plain or {})
        for word in content:
            if word not in cls.__dataclass_fields__ or word == "name":
                raise DataError(f"task '{name}': unknown word '{word}'{nearest(word, set(cls.__dataclass_fields__))}")
        if not content.get("entity"):
            raise DataError(f"task '{name}': no entity: name the table that it asks about")
        if content.get("answer") not in (None, *ANSWERS):
            raise DataError(f"task '{name}': answer={content['answer']}{nearest(str(content['answer']), ANSWERS)}")
        if "window" in content:
            content["window"] = seconds(content["window"])
        for word in ("val", "test"):
            content[word] = str(content.get(word, ""))
        return cls(**content, name=name)

    def answering(self, answer: str) -> Task:
        """The same with its answer known."""
        return replace(self, answer=cast(Answer, answer))


def seconds(text: Any) -> int:
    """``30 days`` or ``12 hours`` in seconds.

    Raises:
        DataError: it is neither a number of seconds nor of this form, or not positive.
    """
    if isinstance(text, int) and text > 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(second|minute|hour|day|week)s?\s*", str(text))
    if match is None or not float(match[1]):
        raise DataError(f"window '{text}': write it as 30 days, 12 hours, 2 weeks")
    return round(float(match[1]) * UNITS[match[2]])
