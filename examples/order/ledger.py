"""An append-only record of what the activities did to the outside world.

`effects` stands for the payment provider, the mail server and so on. Nothing here removes duplicates: if an effect
happens twice there are two rows with the same key, and `effects` counts them.
`attempts` counts how often each activity was tried, whether or not it got as far as its effect.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (key TEXT, attempt INTEGER, pid INTEGER, at REAL);
CREATE TABLE IF NOT EXISTS effects (key TEXT, detail TEXT, attempt INTEGER, pid INTEGER, at REAL);
"""


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=10, isolation_level=None)

    def attempt(self, key: str, attempt: int) -> None:
        with closing(self._connect()) as db:
            db.execute("INSERT INTO attempts VALUES (?, ?, ?, ?)", (key, attempt, os.getpid(), time.time()))

    def effect(self, key: str, detail: str, attempt: int) -> None:
        with closing(self._connect()) as db:
            db.execute("INSERT INTO effects VALUES (?, ?, ?, ?, ?)", (key, detail, attempt, os.getpid(), time.time()))

    def attempts(self) -> Counter[str]:
        with closing(self._connect()) as db:
            return Counter(key for (key,) in db.execute("SELECT key FROM attempts"))

    def effects(self) -> Counter[str]:
        with closing(self._connect()) as db:
            return Counter(key for (key,) in db.execute("SELECT key FROM effects ORDER BY at"))
