"""Trajectories: episodes of acting, from tables and arrays of transitions and from Minari data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from repertory.data.items import Items, Preview, Reader, digest, finite
from repertory.data.tables import read_table
from repertory.errors import DataError, MissingExtraError, first_line, nearest

NAMES = {
    "observations": ("observations", "observation", "states", "state", "obs"),
    "actions": ("actions", "action", "acts"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_states", "next_state", "next_obs"),
    "terminals": ("terminals", "terminal", "dones", "done", "terminations"),
}
"""What transitions are called; the first name is ours."""
CUTS = ("timeouts", "timeout", "truncations", "truncated")
"""Further marks of an episode's last step."""
ACCEPTED = (
    "a dict of arrays (observations, actions, rewards, next_observations, terminals; task or episode), a dict of such "
    "dicts by task, a DataFrame with these columns, a Minari data set or a dict of them by task"
)


@dataclass(frozen=True)
class Episode:
    """Steps of acting in one task.

    Attributes:
        observations: [T, width], before each step.
        actions: [T, width].
        rewards: [T].
        next_observations: [T, width], after each step.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray

    def __len__(self) -> int:
        return len(self.rewards)


class Trajectories(Items):
    """Episodes with their tasks.

    Args:
        ids: one unique name per episode.
        episodes: their steps.
        columns: what else is known, a row per episode: ``task``, and where known ``environment``, a gymnasium id with
            the options that make the task (``repertory/PointRobot-v0?task=0.7``).
    """

    kind = "trajectories"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(self, ids: Sequence[str], episodes: Sequence[Episode], columns: Any = None, roles: Any = None) -> None:
        super().__init__(ids, columns, roles)
        self.episodes = list(episodes)

    @classmethod
    def of(cls, tasks: Mapping[str, Sequence[Episode]], roles: Any = None, **by_task: Sequence[Any]) -> Trajectories:
        """Episodes by task; ids are ``task/number``, the task is the group, so that splits hold out whole tasks.

        Args:
            tasks: the episodes of each task.
            roles: further roles of columns.
            **by_task: further columns, a value per task.
        """
        sizes = [len(episodes) for episodes in tasks.values()]
        names = list(tasks)
        columns = {
            "task": np.repeat(np.array(names, dtype=object), sizes),
            "episode": np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0, np.int64),
            **{name: np.repeat(np.array(values), sizes) for name, values in by_task.items()},
        }
        ids = [f"{name}/{number}" for name, size in zip(names, sizes, strict=True) for number in range(size)]
        episodes = [episode for own in tasks.values() for episode in own]
        return cls(ids, episodes, columns, {"group": ("task",), **(roles or {})})

    def check(self, index: int) -> str:
        episode, first = self.episodes[index], self.episodes[0]
        if not len(episode):
            raise DataError("the episode has no step")
        steps = len(episode)
        for name in ("observations", "actions", "rewards", "next_observations"):
            array = finite(getattr(episode, name), name)
            if array.dtype.kind not in "fiub" or array.ndim != (1 if name == "rewards" else 2) or len(array) != steps:
                raise DataError(
                    f"{name} have shape {list(array.shape)} and type {array.dtype}; [{steps}, width] is needed"
                )
            if array.shape[1:] != getattr(first, name).shape[1:]:
                raise DataError(
                    f"{name} have width {array.shape[1]}, those of {self.ids[0]} {getattr(first, name).shape[1]}: "
                    "all tasks need the same spaces"
                )
        if episode.next_observations.shape[1] != episode.observations.shape[1]:
            raise DataError("observations and next_observations differ in width")
        return digest(*(np.ascontiguousarray(getattr(episode, n), np.float64).tobytes() for n in list(NAMES)[:4]))

    def _select(self, indices: np.ndarray) -> None:
        self.episodes = [self.episodes[i] for i in indices]

    def _extend(self, parts: Sequence[Trajectories]) -> None:
        self.episodes = [episode for part in parts for episode in part.episodes]

    @classmethod
    def wrap(cls, source: Any) -> Trajectories:
        if isinstance(source, pd.DataFrame):
            return _of_frame(source, "the DataFrame")
        if isinstance(source, Mapping) and source:
            first = next(iter(source.values()))
            if _is_minari(first):
                return _of_minari({str(name): part for name, part in source.items()})
            if isinstance(first, Mapping):
                return cls.of({str(name): episodes_of(part, f"task {name}") for name, part in source.items()})
            return _of_arrays(source, "the arrays")
        if _is_minari(source):
            return _of_minari({source.id: source})
        raise DataError(f"{type(source).__name__} holds no trajectories: give {ACCEPTED}")

    def preview(self, index: int) -> Preview:
        episode = self.episodes[index]
        return Preview(text=f"{len(episode)} steps, return {float(episode.rewards.sum()):.4g}")

    def returns(self) -> np.ndarray:
        """The sum of the rewards of each episode [N]."""
        return np.array([episode.rewards.sum() for episode in self.episodes], np.float64)

    def write(self, folder: str | Path) -> list[Path]:
        """Writes ``dataset_task_NAME.npz`` for each task: transitions laid end to end, terminals 1 on last steps.

        Raises:
            DataError: a file is there already, or a task's name leads out of the folder; nothing is written then.
        """
        folder, tasks = Path(folder), self.column("task").astype(str)
        paths = {task: folder / f"dataset_task_{task}.npz" for task in dict.fromkeys(tasks)}
        for task, path in paths.items():
            if path.resolve().parent != folder.resolve():
                raise DataError(f"{task}: as a file name, this task leads out of {folder}")
            if path.exists():
                raise DataError(f"{path}: is there already: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for task, path in paths.items():
            own = [self.episodes[i] for i in np.flatnonzero(tasks == task)]
            arrays: dict[str, Any] = {n: np.concatenate([getattr(e, n) for e in own]) for n in list(NAMES)[:4]}
            np.savez_compressed(path, **arrays, terminals=_last_steps([len(e) for e in own]))
        return list(paths.values())

    def to_minari(self, folder: str | Path) -> list[Path]:
        """Writes one Minari data set (Arrow) per task, ``folder/TASK/data``; the reader here takes ``folder`` back.

        Raises:
            MissingExtraError: minari is not installed.
            DataError: a folder is there already, or a task's name leads out of it.
        """
        try:
            import gymnasium
            from minari.data_collector import EpisodeBuffer
            from minari.dataset.minari_storage import MinariStorage
        except ImportError:
            raise MissingExtraError("minari", "control") from None
        folder, tasks, written = Path(folder), self.column("task").astype(str), []
        for task in dict.fromkeys(tasks):
            target = folder / task / "data"
            if target.resolve().parent.parent != folder.resolve():
                raise DataError(f"{task}: as a folder, this task leads out of {folder}")
            if target.exists():
                raise DataError(f"{target}: is there already: choose another folder")
            rows = np.flatnonzero(tasks == task)
            first = self.episodes[rows[0]]
            boxes = {
                name: gymnasium.spaces.Box(-np.inf, np.inf, array.shape[1:], array.dtype.type)
                for name, array in (("observation_space", first.observations), ("action_space", first.actions))
            }
            target.mkdir(parents=True)
            storage = MinariStorage.new(target, **boxes, data_format="arrow")
            buffers = []
            for number, row in enumerate(rows):
                episode = self.episodes[row]
                done = _last_steps([len(episode)]).astype(bool)
                buffers.append(EpisodeBuffer(
                    id=number, observations=np.concatenate([episode.observations, episode.next_observations[-1:]]),
                    actions=episode.actions, rewards=list(episode.rewards),
                    terminations=list(np.zeros_like(done)), truncations=list(done), infos={},
                ))  # fmt: skip
            storage.update_episodes(buffers)
            metadata: dict[str, Any] = {"dataset_id": f"{task}-v0", "minari_version": _minari_version()}
            if "environment" in self.columns.column_names:
                metadata["description"] = f"environment {self.column('environment')[rows[0]]}"
            storage.update_metadata(metadata)
            written.append(target)
        return written


# -- transitions --------------------------------------------------------------------------------------------------


def _last_steps(lengths: Sequence[int]) -> np.ndarray:
    marks = np.zeros(int(np.sum(lengths)), np.float32)
    marks[np.cumsum(lengths) - 1] = 1
    return marks


def episodes_of(arrays: Mapping[str, Any], name: str, whole: bool = False) -> list[Episode]:
    """The episodes of transitions [N, ...] laid end to end, cut after each step whose terminal is 1.

    Args:
        arrays: by the names of ``NAMES``.
        name: where they come from, for messages.
        whole: the arrays are one episode, whatever their terminals.

    Raises:
        DataError: an array is missing, lengths differ, or the last episode has no terminal.
    """
    found = {}
    needed = list(NAMES)[: 4 if whole else 5]
    for ours in needed:
        key = next((known for known in NAMES[ours] if known in arrays), None)
        if key is None:
            raise DataError(
                f"{name}: no '{ours}' (also read: {', '.join(NAMES[ours][1:])}); it holds {', '.join(map(str, arrays))}"
            )
        found[ours] = np.asarray(arrays[key])
    steps = len(found["rewards"])
    for ours, array in found.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name}: {ours} have type {array.dtype}; numbers are needed")
        if len(array) != steps:
            raise DataError(f"{name}: {len(array)} {ours} but {steps} rewards")
        if array.ndim == 1 and ours not in ("rewards", "terminals"):
            found[ours] = array[:, None]
    if not steps:
        raise DataError(f"{name}: empty: there is no step in it")
    found["rewards"] = found["rewards"].reshape(steps, -1)
    if found["rewards"].shape[1] != 1:
        raise DataError(f"{name}: a step has {found['rewards'].shape[1]} rewards; one is needed")
    found["rewards"] = found["rewards"].reshape(-1)
    if whole:
        return [Episode(**found)]
    last = found.pop("terminals").reshape(steps).astype(bool)
    for cut in CUTS:
        if cut in arrays:
            last = last | np.asarray(arrays[cut]).reshape(steps).astype(bool)
    if not last[-1]:
        raise DataError(
            f"{name}: the last episode, from step {int(np.flatnonzero(last)[-1]) + 1 if last.any() else 0} to "
            f"{steps - 1}, has no terminal: set terminals to 1 on the last step of every episode"
        )
    ends = np.flatnonzero(last)[:-1] + 1
    pieces = {ours: np.split(array, ends) for ours, array in found.items()}
    return [Episode(**dict(zip(pieces, parts, strict=True))) for parts in zip(*pieces.values(), strict=True)]


def _of_arrays(arrays: Mapping[str, Any], name: str) -> Trajectories:
    """Transitions of one task, or of several where there is ``task`` [N]; ``episode`` [N] may stand for terminals."""
    arrays = {str(key): np.asarray(value) for key, value in arrays.items()}
    rewards = next((arrays[key] for key in NAMES["rewards"] if key in arrays), np.empty(0))
    task = arrays.pop("task", np.zeros(len(rewards), np.int64))
    episode = arrays.pop("episode", None)
    if episode is not None and not any(key in arrays for key in NAMES["terminals"]):
        changes = (episode[1:] != episode[:-1]) | (task[1:] != task[:-1])
        arrays["terminals"] = np.append(changes, np.ones(min(len(episode), 1))).astype(np.float32)
    steps = {key: value for key, value in arrays.items() if value.ndim and len(value) == len(task)}
    tasks = {}
    for value in dict.fromkeys(task.tolist()):
        mine = task == value
        tasks[str(value)] = episodes_of({key: array[mine] for key, array in steps.items()}, f"{name}, task {value}")
    return Trajectories.of(tasks) if tasks else Trajectories.of({"0": episodes_of(arrays, name)})


def _of_frame(frame: pd.DataFrame, name: str) -> Trajectories:
    arrays: dict[str, np.ndarray] = {}
    for column in frame.columns:
        values = frame[column]
        if values.dtype != object:
            arrays[str(column)] = values.to_numpy()
        else:
            try:
                arrays[str(column)] = np.stack([np.asarray(value) for value in values])
            except ValueError:
                raise DataError(f"{name}: column '{column}' holds lists of different lengths") from None
    return _of_arrays(arrays, name)


def read_transitions(path: Path) -> Trajectories:
    """An ``.npz`` or Parquet file of transitions, or a folder of them with one task each."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".parquet"))
        read = {file.stem.removeprefix("dataset_task_"): read_transitions(file) for file in files}
        return Trajectories.of({name: items.episodes for name, items in read.items()})
    if path.suffix == ".parquet":
        return _of_frame(read_table(path), str(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip and header errors of many types
        raise DataError(f"{path}: cannot be read as .npz: {first_line(error)}") from None
    return _of_arrays(arrays, str(path))


# -- Minari -------------------------------------------------------------------------------------------------------


def _minari_version() -> str:
    import minari

    return minari.__version__


def _is_minari(source: Any) -> bool:
    return hasattr(source, "iterate_episodes") and hasattr(source, "total_steps")


def _of_minari(datasets: Mapping[str, Any]) -> Trajectories:
    tasks, environments = {}, []
    for name, dataset in datasets.items():
        tasks[name] = [_of_minari_episode(episode, name) for episode in dataset.iterate_episodes()]
        about = str(dataset.storage.metadata.get("description", ""))
        spec = getattr(dataset, "env_spec", None)
        environments.append(about.removeprefix("environment ") if about.startswith("environment ") else
                            spec.id if spec is not None else None)  # fmt: skip
    if all(environment is None for environment in environments):
        return Trajectories.of(tasks)
    return Trajectories.of(tasks, environment=environments)


def _of_minari_episode(episode: Any, name: str) -> Episode:
    observations, actions = episode.observations, episode.actions
    if not isinstance(observations, np.ndarray) or not isinstance(actions, np.ndarray):
        raise DataError(
            f"{name}: observations or actions are dictionaries; arrays are needed: flatten the spaces first"
        )
    if len(observations) != len(episode.rewards) + 1:
        raise DataError(
            f"{name}: {len(observations)} observations with {len(episode.rewards)} rewards; one more is needed"
        )
    flat = observations.reshape(len(observations), -1)
    return Episode(flat[:-1], actions.reshape(len(actions), -1), np.asarray(episode.rewards), flat[1:])


def read_minari(path: Path, tasks: str = "") -> Trajectories:
    """A Minari data set on disk (the folder that holds ``data``), or a folder of several, one a task.

    Args:
        path: the folder.
        tasks: names of sub-folders, joined by commas; empty: all.
    """
    try:
        import minari
    except ImportError:
        raise MissingExtraError("minari", "control") from None
    if (path / "data" / "metadata.json").exists():
        found = {path.name: path / "data"}
    else:
        found = {p.parent.parent.relative_to(path).as_posix().replace("/", "-"): p.parent
                 for p in sorted(path.rglob("data/metadata.json"))}  # fmt: skip
    for name in tasks.split(",") if tasks else ():
        if name not in found:
            raise DataError(f"{path}: no data set '{name}'{nearest(name, found)}")
    chosen = tasks.split(",") if tasks else list(found)
    try:
        return _of_minari({name: minari.MinariDataset(found[name]) for name in chosen})
    except DataError:
        raise
    except Exception as error:  # h5py, Arrow and Minari have their own types
        raise DataError(f"{path}: cannot be read as a Minari data set: {first_line(error)}") from None


def _holds_minari(path: Path) -> bool:
    return path.is_dir() and next(path.rglob("data/metadata.json"), None) is not None


Trajectories.readers = (
    Reader("minari", "a Minari data set on disk, or a folder of them, one a task", _holds_minari, read_minari),
    Reader("transitions", "an .npz or Parquet file of transitions, or a folder with such a file per task",
           lambda p: p.suffix in (".npz", ".parquet") or (p.is_dir() and any(
               f.suffix in (".npz", ".parquet") for f in p.iterdir())), read_transitions),
)  # fmt: skip
