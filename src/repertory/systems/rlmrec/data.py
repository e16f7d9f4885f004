"""Users and items as numbers, batches of triples, and the layout of the official data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repertory.data import Reader
from repertory.data.interactions import Interactions, InteractionTable
from repertory.data.pickles import read_pickle
from repertory.errors import DataError, first_line
from repertory.runs import reseed
from repertory.systems.rlmrec.alignment import Triples
from repertory.systems.rlmrec.ranking import Chosen
from repertory.training import Batches


def numbered(items: Interactions, users: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Interactions [E, 2] as positions in ``users`` and ``names`` (of items); -1 for who is not among them."""
    table = items.units
    places = []
    for side, known in ((0, users), (1, names)):
        position = {name: n for n, name in enumerate(known)}
        number = np.array([position.get(name, -1) for name in table.names[side]], dtype=np.int64)
        places.append(number[table.pairs[:, side]] if len(number) else np.empty(0, np.int64))
    return np.stack(places, axis=1)


class TripleBatches(Batches):
    """All training interactions once an epoch, each with an item that its user has not chosen.

    Args:
        pairs: [interactions, 2]. chosen: the same, by user. batch_size: triples.
    """

    def __init__(self, pairs: np.ndarray, chosen: Chosen, batch_size: int) -> None:
        self.pairs, self.chosen, self.size = pairs, chosen, min(batch_size, len(pairs))
        self._drawn: tuple[Any, ...] = ()
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return -(-len(self.pairs) // (self.size * self.world))

    def __getitem__(self, k: int) -> Triples:
        epoch, position = divmod(k, len(self))
        key = (self.seed, self.stage, "order", epoch)
        if key != self._drawn:
            reseed(*key)
            self._drawn, self._order = key, np.random.permutation(len(self.pairs))
            reseed(self.seed, self.stage, self.rank, k, "batch")
        start = (position * self.world + self.rank) * self.size
        part = self._order[start : start + self.size]
        users, positives = self.pairs[part if len(part) else self._order[: self.size]].T
        return Triples(*(torch.from_numpy(z.copy()) for z in (users, positives, negatives(users, self.chosen))))


def negatives(users: np.ndarray, chosen: Chosen) -> np.ndarray:
    """An item for each of ``users`` [B], uniform among those that the user has not chosen; there must be one."""
    items = np.random.randint(chosen.count, size=len(users))
    again = np.flatnonzero(chosen.has(users, items))
    while len(again):
        items[again] = np.random.randint(chosen.count, size=len(again))
        again = again[chosen.has(users[again], items[again])]
    return items


# -- the official layout -----------------------------------------------------------------------------------------


def read_matrix(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Where a sparse matrix is not zero, [entries, 2], and its shape; of SciPy's ``.npz``, or its pickle read safely.

    Raises:
        DataError: it cannot be read, or holds anything else.
    """
    import scipy.sparse

    try:
        matrix = (scipy.sparse.load_npz(path) if path.suffix == ".npz" else read_pickle(path)).tocoo()
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"{path}: no sparse matrix that can be read: {first_line(error)}") from None
    there = matrix.data != 0
    return np.stack([matrix.row[there], matrix.col[there]], axis=1).astype(np.int64), matrix.shape


def _one_of(folder: Path, stem: str) -> Path | None:
    return next((folder / (stem + end) for end in (".npz", ".pkl") if (folder / (stem + end)).exists()), None)


def read_official(path: Path) -> Interactions:
    """A folder of the official data.

    ``trn_mat``, ``val_mat``, ``tst_mat`` (``.npz``, or ``.pkl`` read safely), and where they are there ``usr_prf.pkl``
    and ``itm_prf.pkl`` (profiles), ``usr_emb_np`` and ``itm_emb_np`` (vectors, ``.npy`` or ``.pkl``).

    Raises:
        DataError: a file is missing or holds something else, or sizes do not match.
    """
    pairs: list[np.ndarray] = []
    parts: list[str] = []
    shape = (0, 0)
    for stem, part in (("trn_mat", "train"), ("val_mat", "val"), ("tst_mat", "test")):
        file = _one_of(path, stem)
        if file is None:
            raise DataError(f"{path}: no {stem}.npz or {stem}.pkl")
        found, size = read_matrix(file)
        if pairs and size != shape:
            raise DataError(f"{file}: {size[0]} users and {size[1]} items, but trn_mat has {shape[0]} and {shape[1]}")
        found, shape = np.unique(found, axis=0), size
        pairs.append(found)
        parts += [part] * len(found)
    ids = [f"{part}: user {u}, item {i}" for part, (u, i) in zip(parts, np.concatenate(pairs), strict=True)]
    names = tuple(np.array([str(n) for n in range(count)], dtype=object) for count in shape)
    table = InteractionTable(names, np.concatenate(pairs), {"split": parts}, ids=ids)  # type: ignore[arg-type]
    columns: dict[str, Any] = {}
    profiles = [_profiles(path / f"{side}_prf.pkl", count) for side, count in zip(("usr", "itm"), shape, strict=True)]
    if any(profile for profile in profiles):
        for ours, theirs in (("text", "profile"), ("reasoning", "reasoning")):
            values = [
                profile.get(n, {}).get(theirs)
                for profile, count in zip(profiles, shape, strict=True)
                for n in range(count)
            ]
            columns[ours] = [None if value is None else str(value) for value in values]
    vectors = [_vectors(path, f"{side}_emb_np", count) for side, count in zip(("usr", "itm"), shape, strict=True)]
    given: np.ndarray | None = None
    if all(v is not None for v in vectors):
        given = np.concatenate(vectors)  # type: ignore[arg-type]
    return Interactions(table, columns, vectors=given)


def _profiles(path: Path, count: int) -> dict[int, Mapping[str, Any]]:
    if not path.exists():
        return {}
    held = read_pickle(path)
    try:
        made: dict[int, Mapping[str, Any]] = {
            int(n): {"profile": value} if isinstance(value, str) else dict(value) for n, value in held.items()
        }
    except (TypeError, ValueError, AttributeError):
        raise DataError(f"{path}: a dict of profiles by number is needed") from None
    if made and not (min(made) >= 0 and max(made) < count):
        raise DataError(f"{path}: a profile of number {max(made)}, but there are {count}")
    return made


def _vectors(path: Path, stem: str, count: int) -> np.ndarray | None:
    if (path / f"{stem}.npy").exists():
        made = np.load(path / f"{stem}.npy", allow_pickle=False)
    elif (path / f"{stem}.pkl").exists():
        made = np.asarray(read_pickle(path / f"{stem}.pkl"), dtype=np.float32)
    else:
        return None
    if made.ndim != 2 or len(made) != count:
        raise DataError(f"{path}/{stem}: {len(made)} text vectors for {count} rows of the matrices: one each is needed")
    return np.asarray(made, dtype=np.float32)


READERS = (
    Reader(
        "rlmrec",
        "a folder with trn_mat, val_mat, tst_mat (.npz or .pkl), profiles and vectors, as the official code reads",
        lambda path: path.is_dir() and _one_of(path, "trn_mat") is not None,
        read_official,
    ),
)
