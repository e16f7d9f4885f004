"""Circuits -> batches, and the layouts of OpenABC-D and of the paper's Verilog pairs."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.data import Reader
from repertory.data.circuits import Circuit, Circuits, circuits_of, with_vectors
from repertory.data.pickles import read_pickle
from repertory.errors import DataError, first_line
from repertory.runs import seeded
from repertory.systems.mgvga.graph import Batch, Graph, masked, with_inverters

NODES = 200_000
"""Nodes, about, that are encoded together."""


def graph_of(circuit: Circuit) -> Graph:
    """The circuit with its inverters as nodes."""
    return with_inverters(circuit.node_type, circuit.edge_index, circuit.edge_type)


@dataclass
class Step:
    """A batch of pre-training: circuits with masks, and those with texts for the alignment (None: there are none)."""

    batch: Batch
    mask: Tensor
    aligned: Batch | None = None
    aligned_mask: Tensor | None = None
    text: Tensor | None = None

    def to(self, device: Any, non_blocking: bool = False) -> Step:
        """The same on a device."""
        fields = (self.batch, self.mask, self.aligned, self.aligned_mask, self.text)
        return Step(*(f if f is None else f.to(device, non_blocking=non_blocking) for f in fields))  # type: ignore[arg-type]


class Pairs:
    """Steps of pre-training; circuits are expanded and texts are encoded once.

    Args:
        circuits: of one part. texts: [n, width], NaN rows where a circuit has none.
        mask_ratio, align_ratio: shares that are hidden.
    """

    def __init__(
        self,
        names: Iterable[str],
        circuits: Sequence[Circuit],
        texts: np.ndarray,
        mask_ratio: float,
        align_ratio: float,
    ) -> None:
        self.graphs = [graph_of(circuit) for circuit in circuits]
        self.texts, self.mask_ratio, self.align_ratio = torch.from_numpy(texts), mask_ratio, align_ratio
        self.told = np.flatnonzero(np.isfinite(texts).all(axis=1))
        for name, (types, _) in zip(names, self.graphs, strict=True):
            if int(len(types) * min(mask_ratio, align_ratio)) < 1:
                raise DataError(
                    f"{name}: {len(types)} nodes are too few to mask a share of {min(mask_ratio, align_ratio):g}"
                )

    def __len__(self) -> int:
        return len(self.graphs)

    def __call__(self, indices: np.ndarray) -> Step:
        """The circuits at ``indices``; where not all have texts, as many others that have."""
        batch, mask = self._masked(indices, self.mask_ratio)
        if not len(self.told):
            return Step(batch, mask)
        told = np.intersect1d(indices, self.told)
        if len(told) < len(indices):
            told = np.concatenate([told, np.random.choice(self.told, len(indices) - len(told))])
            aligned, aligned_mask = self._masked(told, self.align_ratio)
        else:
            told = indices
            aligned, aligned_mask = batch, batch.ordered(masked(batch.sizes, self.align_ratio))
        return Step(batch, mask, aligned, aligned_mask, self.texts[told])

    def _masked(self, indices: np.ndarray, ratio: float) -> tuple[Batch, Tensor]:
        batch = Batch.of([self.graphs[i] for i in indices])
        return batch, batch.ordered(masked(batch.sizes, ratio))


def fixed_mask(seed: int, name: str, n: int, ratio: float) -> Tensor:
    """The mask [n] of a circuit in evaluation: a function of the run's seed and its name."""
    with seeded(seed, "mask", name):
        return masked(torch.tensor([n]), ratio)


def chunks(graphs: Sequence[Graph], most: int, nodes: int = NODES) -> list[np.ndarray]:
    """Indices of circuits in order, at most ``most`` and about ``nodes`` nodes together."""
    made: list[list[int]] = [[]]
    held = 0
    for index, (types, _) in enumerate(graphs):
        if made[-1] and (len(made[-1]) == most or held + len(types) > nodes):
            made.append([])
            held = 0
        made[-1].append(index)
        held += len(types)
    return [np.array(part) for part in made]


# -- the paper's own layouts ----------------------------------------------------------------------------------


class Stored:
    """Stands for the classes of torch_geometric in a file: fields and nothing else."""


CLASSES = (
    "torch_geometric.data.data.Data", "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr", "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.NodeStorage", "torch_geometric.data.storage.EdgeStorage",
    "torch_geometric.data.storage.BaseStorage",
)  # fmt: skip


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a torch_geometric Data, of an old or a new version, in a ``.pt`` or a zip that holds one.

    Read with ``weights_only``: torch_geometric is not run, and nothing is called.

    Raises:
        DataError: damaged, or it holds other objects.
    """
    content = path.read_bytes()
    if path.name.endswith(".zip"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inside = [name for name in archive.namelist() if name.endswith(".pt")]
                if len(inside) != 1:
                    raise DataError(f"{path.name}: holds {len(inside)} .pt files; one is needed")
                content = archive.read(inside[0])
        except zipfile.BadZipFile:
            raise DataError(f"{path.name}: a damaged zip") from None
    try:
        with torch.serialization.safe_globals([(Stored, name) for name in CLASSES]):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch refuses
        raise DataError(f"{path.name}: cannot be read safely: {first_line(error)}") from None
    fields = loaded if isinstance(loaded, dict) else vars(loaded)
    if "_store" in fields:
        fields = vars(fields["_store"]).get("_mapping", {})
    return {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}


def read_openabc(path: Path, vectors: str = "", statistics: str = "") -> Circuits:
    """A folder of OpenABC-D's ``DESIGN_syn..._step....pt.zip`` or of Verilog pairs ``NAME.pt``.

    Files of one design with recipes (``synVec``, ``synID``, ``desName``) become one circuit with all of them.

    Args:
        vectors: ``.npy`` with the dict of text vectors by name, in the folder or anywhere.
        statistics: ``synthesisStatistics.pickle``; by design, columns 0 nodes, 3 area, 4 delay by recipe number.
    """
    files = sorted([*path.rglob("*.pt.zip"), *path.rglob("*.pt")])
    results = read_pickle(_beside(path, statistics)) if statistics else {}
    made: dict[str, Any] = {}
    tried: dict[str, list[tuple[np.ndarray, Any]]] = {}
    for file in files:
        stem = file.name.removesuffix(".zip").removesuffix(".pt")
        try:
            fields = read_fields(file)
            design = str(_one(fields.get("desName", stem)))
            name = design if "synVec" in fields else stem
            if name not in made:
                made[name] = Circuit.of_fields(fields, file.name)
        except DataError as error:
            made[stem] = error
            continue
        if "synVec" in fields:
            tried.setdefault(name, []).append((np.asarray(fields["synVec"]).ravel(), _one(fields.get("synID"))))
    if results:
        made = {name: _with_results(name, circuit, tried.get(name, []), results) for name, circuit in made.items()}
    ids, circuits = list(made), list(made.values())
    if vectors:
        circuits = with_vectors(ids, circuits, _beside(path, vectors))
    families = [re.split(r"_(?:orig|syn)\d*", name)[0] for name in ids]
    return circuits_of(ids, circuits, families if len(set(families)) < len(ids) else ())


def _with_results(name: str, circuit: Any, tried: list[tuple[np.ndarray, Any]], results: dict[str, Any]) -> Any:
    if not isinstance(circuit, Circuit) or not tried:
        return circuit
    if name not in results:
        return DataError(f"the statistics know no design '{name}'")
    try:
        values = [[float(results[name][column][int(number)]) for column in (0, 3, 4)] for _, number in tried]
    except (IndexError, KeyError, TypeError, ValueError):
        return DataError(f"the statistics of '{name}' lack a column 0, 3 or 4, or a recipe")
    return replace(circuit, recipes=np.stack([recipe for recipe, _ in tried]), results=np.array(values))


def _one(value: Any) -> Any:
    """A single value out of the lists that PyG makes of it."""
    while isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, Tensor) and value.ndim):
        value = value[0]
    return value.item() if isinstance(value, Tensor) else value


def _beside(path: Path, name: str) -> Path:
    return Path(name) if Path(name).exists() else path / name


def _matches(path: Path) -> bool:
    return path.is_dir() and (next(path.rglob("*.pt.zip"), None) or next(path.rglob("*.pt"), None)) is not None


READERS = (
    Reader("openabc", "a folder of OpenABC-D graphs (.pt.zip) or of Verilog pairs (.pt), with text vectors", _matches,
           read_openabc),
)  # fmt: skip
