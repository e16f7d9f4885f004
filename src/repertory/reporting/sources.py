"""What a report may say of where things lie: the last part of a path, never the machine or its user."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
from functools import cache

# Names so common that they say nothing and would be cut out of honest prose.
COMMON = {"root", "user", "admin", "home", "data", "work", "test", "runner", "ubuntu", "debian", "docker", "localhost"}
ROOTS = (
    "home|Users|root|tmp|data|datasets|mnt|var|opt|srv|usr|etc|private|Volumes|media|scratch|workspace|work|nfs|gpfs"
    "|lustre|projects?|content|kaggle|app"
)
PART = r"[\w.+~@%-]+"
BEFORE = r"(?<![\w./\\~])"  # a path starts a word: "km/h", "train/val" and "C/C=C" are none
PATHS = re.compile(
    rf"(?P<quote>[\"'`])(?:file://|~|[A-Za-z]:)?[/\\][^\"'`\n]*(?P=quote)"  # quoted, spaces allowed
    rf"|{BEFORE}file://[^\s\"'<>|?]*"
    rf"|{BEFORE}~(?:{PART})?/(?:{PART}/)*(?:{PART})?"
    rf"|{BEFORE}\.{{1,2}}/(?:{PART}/)*(?:{PART})?"
    rf"|{BEFORE}/(?:{ROOTS})(?:/{PART})*/?(?![\w=#()\[\]])"
    rf"|{BEFORE}/{PART}(?:/{PART})+/?(?![\w=#()\[\]])"
    rf"|{BEFORE}[A-Za-z]:[\\/](?:[^\\/:*?\"<>|\s]+[\\/])*[^\\/:*?\"<>|\s]*"
    rf"|{BEFORE}\\\\(?:[\w.$-]+\\)+[\w.$-]*"
)
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
HOMES = {"home", "Users", "root"}


def sanitise(text: str) -> str:
    """``text`` with every path cut to ``…/`` and its last part, and without host, user name and credentials.

    The kind and the query of a source stay: ``images:/home/ann/birds?label=species`` becomes
    ``images:…/birds?label=species``. A home directory itself becomes ``…``. Relative paths keep their names, except
    those that start with ``./``, ``../`` or ``~``.
    """
    text = PATHS.sub(lambda match: _last(match[0], match["quote"] or ""), CREDENTIALS.sub("", text))
    for name in _machine():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "…", text)
    return text


def sanitise_source(source: str) -> str:
    """As :func:`sanitise` for a text that is one source as a whole: spaces belong to it, relative paths are cut too."""
    kind, path, query = re.fullmatch(r"((?:[a-z][\w-]+:(?!//))?)([^?]*)(.*)", source, re.DOTALL).groups()
    if "://" in path and not path.startswith("file://"):
        return sanitise(source)
    if re.search(r"[/\\]", path):
        path = _last(path, "")
    return sanitise(kind + path) + sanitise(query)


def _last(path: str, quote: str) -> str:
    parts = [part for part in re.split(r"[/\\]+", path.strip(quote)) if part and part not in (".", "..", "file:")]
    # the last part of /home/ann is a person, not a thing
    is_home = not parts or parts[-1] in HOMES or parts[-1][0] == "~" or parts[-2:-1] in (["home"], ["Users"])
    return f"{quote}…{quote}" if is_home else f"{quote}…/{parts[-1]}{quote}"


@cache
def _machine() -> tuple[str, ...]:
    """The names of this host and of who runs this, where they say anything."""
    names = {socket.gethostname(), socket.getfqdn(), socket.gethostname().split(".")[0]}
    with contextlib.suppress(OSError, KeyError, ImportError):  # no user database, as in some containers
        names.add(getpass.getuser())
    return tuple(sorted((n for n in names if len(n) > 2 and n.lower() not in COMMON), key=len, reverse=True))
