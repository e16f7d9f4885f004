"""MGVGA: vectors of gates and circuits from masked gates and from Verilog texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.circuits import Circuit, Circuits
from repertory.embeddings import Embeddings
from repertory.encoders import read_checkpoint
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Metric, Metrics, auroc, resampled_interval
from repertory.systems.mgvga import figures
from repertory.systems.mgvga.config import Config
from repertory.systems.mgvga.data import READERS, Pairs, chunks, fixed_mask, graph_of
from repertory.systems.mgvga.equivalence import pairs_of
from repertory.systems.mgvga.graph import AND, TYPES, Batch
from repertory.systems.mgvga.model import MGVGA, EquivalenceHead, QoRHead, from_official_keys
from repertory.systems.mgvga.synthesis import OPERATIONS, drawn_recipes, tried
from repertory.systems.mgvga.text import HashedTexts, LanguageModel, stored
from repertory.systems.mgvga.training import HeadTraining, NodePairs, Pretraining, Synthesised, encoded
from repertory.training import Fixed, Shuffled, Stage, TorchSystem


class Hidden(NamedTuple):
    """Gates that were hidden in evaluation: of which circuit [M], which node, what they are, and logits [M, 4]."""

    circuit: np.ndarray
    node: np.ndarray
    truth: np.ndarray
    logits: Tensor

    @property
    def said(self) -> np.ndarray:
        """The likeliest types [M]."""
        return self.logits.argmax(1).numpy()

    @property
    def losses(self) -> np.ndarray:
        """Cross-entropies [M], nats."""
        return F.cross_entropy(self.logits, torch.from_numpy(self.truth), reduction="none").numpy()


class MGVGASystem(TorchSystem):
    """Masked gate modelling and Verilog-AIG alignment (Wu et al., ICLR 2025)."""

    readers = READERS
    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Circuits], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        if splits.rule == "none" or len(splits.train) < 2:
            raise DataError(f"{splits.source}: {len(splits.train)} circuits to train on; at least 2 are needed")
        for encoder in self._encoders.values():
            if not (encoder.address or "").startswith("hf:"):
                raise ConfigError(f"text_encoder={encoder.address}: a language model is given as hf:NAME")
        for part in (splits.train, splits.val, splits.test):
            self._maskable(part)
        self._kind_of_text(splits.train)

    def _maskable(self, items: Circuits) -> None:
        ratio = min(self.config.mask_ratio, self.config.align_ratio)
        for name, circuit in zip(items.ids, items.circuits, strict=True):
            n = len(circuit) + int(circuit.edge_type.sum())
            if int(n * ratio) < 1:
                raise DataError(f"{name}: {n} nodes, too few to mask a share of {ratio:g} of them")

    def _kind_of_text(self, items: Circuits) -> str:
        """What the alignment reads.

        Raises:
            DataError: it is asked for, but there is none; the design is named.
        """
        asked: str = self.config.text
        if asked == "auto":
            if self._encoders:
                asked = "verilog"
            elif all(circuit.text is not None for circuit in items.circuits):
                asked = "vectors"
            else:
                asked = "verilog" if any(circuit.verilog for circuit in items.circuits) else "none"
        if asked == "vectors":
            stored(items.ids, items.circuits)
        if asked == "verilog" and not any(circuit.verilog for circuit in items.circuits):
            raise DataError(f"text=verilog, but no design has any (first: '{items.ids[0]}'): set text=none")
        return asked

    def _learn(self, splits: Splits[Circuits]) -> dict[str, Any]:
        c, train = self.config, splits.train
        kind = self._kind_of_text(train)
        made: dict[str, Any] = {"text": kind, "text_width": c.text_width}
        if kind == "vectors":
            made["text_width"] = len(train.circuits[0].text)
        elif kind == "verilog" and self._encoders:
            made["text_width"] = next(iter(self._encoders.values())).width
        elif kind == "verilog":
            made["rarity"] = HashedTexts(c.text_width).fit([x.verilog for x in train.circuits if x.verilog])
        types = np.concatenate([graph_of(circuit)[0] for circuit in train.circuits])
        made["majority"] = int(np.bincount(types, minlength=len(TYPES)).argmax())
        if "qor" in c.tasks:
            tries = [tried(circuit, c.recipes, c.recipe_steps) for circuit in train.circuits]
            made |= {
                "results": list(tries[0].names), "recipe_steps": int(tries[0].recipes.shape[1]),
                "operations": int(max(len(OPERATIONS), 1 + max(t.recipes.max() for t in tries))),
            }  # fmt: skip
        return made

    def _build(self) -> nn.Module:
        c, known = self.config, self.assets
        model = nn.ModuleDict({"mgvga": MGVGA(c.dim, c.layers, known["text_width"], c.cross_layers, c.dropout)})
        if "qor" in c.tasks and "results" in known:
            model["qor"] = QoRHead(c.dim, known["operations"], known["recipe_steps"], len(known["results"]))
        if "equivalence" in c.tasks:
            model["equivalence"] = EquivalenceHead(c.dim)
        for encoder in self._encoders.values():
            model["text_encoder"] = encoder.freeze()
        return model

    @property
    def network(self) -> MGVGA:
        """The pre-trained network; ``network.encode(types, edges)`` gives vectors of one graph's nodes."""
        self._needs_fit()
        network: MGVGA = self.model["mgvga"]
        return network

    def texts(self, items: Circuits) -> np.ndarray:
        """Text vectors [n, width] of circuits; rows of NaN where there is none.

        Raises:
            DataError: vectors were trained with, and a design has none or one of another width.
        """
        kind, width = self.assets["text"], int(self.assets["text_width"])
        if kind == "vectors":
            return stored(items.ids, items.circuits, width)
        made = np.zeros((len(items), width), np.float32)
        if kind == "none":
            return made
        told = [i for i, circuit in enumerate(items.circuits) if circuit.verilog]
        made[:] = np.nan
        if told:
            encoder: Any = next(iter(self._encoders.values()), None)
            read: Any = HashedTexts(width, np.asarray(self.assets.get("rarity"))) if encoder is None else (
                LanguageModel(encoder, self.config.text_tokens)
            )  # fmt: skip
            made[told] = read(items.circuits[i].verilog for i in told)
        return made

    def stages(self, splits: Splits[Circuits]) -> list[Stage]:
        c = self.config
        train, val = (
            Pairs(part.ids, part.circuits, self.texts(part), c.mask_ratio, c.align_ratio)
            for part in (splits.train, splits.val)
        )
        stages = [
            Stage(
                "pretraining", Pretraining(self.network, c.lr, c.final_lr, c.weight_decay),
                Shuffled(len(train), c.batch_size, train), epochs=c.epochs, steps=c.steps,
                validation=Fixed(len(val), c.batch_size, val, "validation") if len(val) else (),
                validate_every=None if c.steps is None else max(1, c.steps // 10),
            )
        ]  # fmt: skip
        for name in c.tasks:
            task = self._task(name, splits.train.circuits)
            if not len(task):
                raise DataError(f"{splits.source}: no design has two equal nodes to learn equivalence from")
            module = HeadTraining(self.network, self.model[name], task, c.task_lr)
            stages.append(Stage(name, module, Shuffled(len(task), 256, torch.from_numpy), steps=c.task_steps))
        return stages

    def _task(self, name: str, circuits: Sequence[Circuit]) -> Any:
        c = self.config
        if name == "qor":
            return Synthesised(circuits, [tried(circuit, c.recipes, c.recipe_steps) for circuit in circuits])
        return NodePairs([pairs_of(circuit, c.most_pairs) for circuit in circuits])

    # -- embed and evaluate ----------------------------------------------------------------------------------------

    def _embed(self, data: Circuits, batch_size: int) -> Iterator[Embeddings]:
        graphs = [graph_of(circuit) for circuit in data.circuits]
        for part in chunks(graphs, batch_size):
            _, whole = self.network(Batch.of([graphs[i] for i in part]).to(self.device))
            yield Embeddings.build(whole.float().cpu().numpy(), id=data.ids[part])

    @torch.no_grad()
    def hidden(self, items: Circuits, aligned: bool = False) -> Hidden:
        """Hides gates and tells them; which ones is a function of the run's seed and the circuit's name.

        Args:
            aligned: hidden before encoding and told with the text, in place of hidden after encoding.

        Raises:
            DataError: ``aligned``, and no circuit has a text.
        """
        self._maskable(items)
        texts = self.texts(items) if aligned else np.zeros((len(items), 1), np.float32)
        rows = np.flatnonzero(np.isfinite(texts).all(axis=1))
        if not len(rows):
            raise DataError(f"no circuit has a text (first: '{items.ids[0]}')")
        graphs = [graph_of(items.circuits[i]) for i in rows]
        ratio = self.config.align_ratio if aligned else self.config.mask_ratio
        seed = int(self.record.get("seed", 0))
        self.network.eval()
        made: list[tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]] = []
        for part in chunks(graphs, len(graphs)):
            batch = Batch.of([graphs[i] for i in part])
            masks = [fixed_mask(seed, str(items.ids[rows[i]]), len(graphs[i][0]), ratio) for i in part]
            mask = batch.ordered(torch.cat(masks))
            on, there = batch.to(self.device), mask.to(self.device)
            if aligned:
                logits = self.network.align(on, there, torch.from_numpy(texts[rows[part]]).to(self.device))
            else:
                logits = self.network.mask_gates(on, there).logits
            graph, place = batch.graph[mask].numpy(), batch.order[mask].numpy()
            starts = np.cumsum(batch.sizes.numpy()) - batch.sizes.numpy()
            made.append((rows[part][graph], place - starts[graph], batch.types[mask].numpy(), logits.float().cpu()))
        circuit, node, truth, logits = zip(*made, strict=True)
        order = np.lexsort((np.concatenate(node), np.concatenate(circuit)))
        return Hidden(
            np.concatenate(circuit)[order], np.concatenate(node)[order], np.concatenate(truth)[order],
            torch.cat(logits)[order],
        )  # fmt: skip

    def _evaluate(self, splits: Splits[Circuits]) -> Metrics:
        test, seed = splits.test, int(self.record.get("seed", 0))
        hidden, share = self.hidden(test), f"{self.config.mask_ratio:.0%} of the gates"
        majority = self.assets.get("majority", AND)
        made = {
            "mask_accuracy": Metric.of(
                hidden.said == hidden.truth, seed, higher_is_better=True, about=f"types of {share}, hidden"
            ),
            "mask_majority": Metric(
                float((hidden.truth == majority).mean()), about=f"share of them that are {TYPES[majority]}"
            ),
            "mask_loss": Metric(float(hidden.losses.mean()), higher_is_better=False, about="their cross-entropy, nats"),
        }
        if np.isfinite(self.texts(test)).all(axis=1).any():
            aligned = self.hidden(test, aligned=True)
            with_text = "without a text" if self.assets["text"] == "none" else "with the text"
            made["align_accuracy"] = Metric.of(
                aligned.said == aligned.truth, seed, higher_is_better=True,
                about=f"types of {self.config.align_ratio:.0%} of the gates, hidden before encoding, told {with_text}",
            )  # fmt: skip
            made["align_loss"] = Metric(
                float(aligned.losses.mean()), higher_is_better=False, about="their cross-entropy, nats"
            )
        for name in self.config.tasks:
            if name in self.model:
                made |= self._task_metrics(name, test, seed)
        return Metrics(made) | self.probe(splits)

    def _task_metrics(self, name: str, test: Circuits, seed: int) -> dict[str, Metric]:
        task = self._task(name, test.circuits)
        if not len(task):
            return {}
        labelled = task(self.network)
        said = self.model[name](*labelled.inputs).float().cpu().numpy()
        truth = labelled.targets.cpu().numpy()
        if name == "equivalence":

            def area(weights: np.ndarray) -> np.ndarray:
                return auroc(truth, said, weights)

            low, high = resampled_interval(area, len(truth), seed)
            value = float(area(np.ones(len(truth))))
            about = f"{len(truth)} pairs of gates of restructured designs, truth by simulation"
            return {"equivalence/roc_auc": Metric(value, min(low, value), max(high, value), True, about)}
        errors = np.abs(said - truth)
        return {
            f"qor/{result}_error": Metric.of(
                errors[:, k], seed, higher_is_better=False,
                about=f"mean absolute error of {result} after a recipe, in the design's standard deviations",
            )
            for k, result in enumerate(self.assets["results"])
        }  # fmt: skip

    # -- verbs -----------------------------------------------------------------------------------------------------

    def predict(self, data: Any = None, what: str = "gates") -> pa.Table:
        """Types of hidden gates, or the quality of synthesis results.

        Args:
            data: a source; None takes the held-out split of the run's own data.
            what: ``gates``, or ``qor``: results of the recipes that the data bring, or of as many drawn ones.

        Returns:
            gates: a row per hidden gate: id, node (its number; NOT nodes follow the others), type, predicted,
            probability. qor: a row per recipe: id, recipe, and each result in the design's standard deviations.

        Raises:
            ConfigError: nothing of this name, or the run was not trained for it.
        """
        items, _ = self._held_out(data)
        if what == "qor":
            return self._predict_qor(items)
        if what != "gates":
            raise ConfigError(f"what={what}: expected gates or qor")
        hidden = self.hidden(items)
        return pa.table({
            "id": pa.array([str(items.ids[i]) for i in hidden.circuit]),
            "node": pa.array(hidden.node),
            "type": pa.array([TYPES[k] for k in hidden.truth]),
            "predicted": pa.array([TYPES[k] for k in hidden.said]),
            "probability": pa.array(hidden.logits.softmax(1).max(1).values.numpy()),
        })  # fmt: skip

    @torch.no_grad()
    def _predict_qor(self, items: Circuits) -> pa.Table:
        if "qor" not in self.model:
            raise ConfigError("this run was not trained to predict synthesis results: fit with tasks=[qor]")
        _, whole = encoded(self.network, items.circuits)
        steps, operations = int(self.assets["recipe_steps"]), int(self.assets["operations"])
        ids: list[str] = []
        recipes: list[np.ndarray] = []
        for name, circuit in zip(items.ids, items.circuits, strict=True):
            own = circuit.recipes
            if own is None:
                own = drawn_recipes(circuit, self.config.recipes, steps)
            if own.shape[1] != steps or own.min() < 0 or own.max() >= operations:
                raise DataError(f"{name}: recipes of {own.shape[1]} steps; {steps} of 0..{operations - 1} were learned")
            ids += [str(name)] * len(own)
            recipes.append(own)
        counts = torch.tensor([len(part) for part in recipes], device=self.device)
        tensor = torch.from_numpy(np.concatenate(recipes).astype(np.int64)).to(self.device)
        said = self.model["qor"](whole.repeat_interleave(counts, 0), tensor).float().cpu().numpy()
        made = {"id": pa.array(ids), "recipe": pa.array(tensor.cpu().tolist())}
        return pa.table(made | {name: pa.array(said[:, k]) for k, name in enumerate(self.assets["results"])})

    def score(self, data: Any = None) -> pa.Table:
        """How hard a circuit's hidden gates are to tell: mean cross-entropy (nats), higher = stranger."""
        items, _ = self._held_out(data)
        hidden = self.hidden(items)
        total = np.bincount(hidden.circuit, hidden.losses, len(items))
        return pa.table({"id": pa.array(items.ids), "score": pa.array(total / np.bincount(hidden.circuit))})

    @torch.no_grad()
    def analyze(self, data: Any = None) -> pa.Table:
        """Logic equivalence: pairs of gates of each design and a balanced copy of it, equal or nearly so.

        Returns:
            A row per pair: id, node, other (in the joined network), probability (that they are equal, by the head),
            equal (by simulation) and exact (whether all input patterns were simulated).

        Raises:
            ConfigError: the run was not trained for it.
        """
        if "equivalence" not in self.model:
            raise ConfigError("this run was not trained to tell equal gates: fit with tasks=[equivalence]")
        items, _ = self._held_out(data)
        kept = [
            (str(name), pair)
            for name, circuit in zip(items.ids, items.circuits, strict=True)
            if len((pair := pairs_of(circuit, self.config.most_pairs)).one)
        ]
        if not kept:
            raise DataError("no design has two equal gates")
        labelled = NodePairs([pair for _, pair in kept])(self.network)
        said = self.model["equivalence"](*labelled.inputs).sigmoid().float().cpu().numpy()
        return pa.table({
            "id": pa.array([name for name, pair in kept for _ in pair.one]),
            "node": pa.array(np.concatenate([pair.one for _, pair in kept])),
            "other": pa.array(np.concatenate([pair.other for _, pair in kept])),
            "probability": pa.array(said),
            "equal": pa.array(np.concatenate([pair.equal for _, pair in kept])),
            "exact": pa.array([pair.exact for _, pair in kept for _ in pair.one]),
        })  # fmt: skip

    def figures(self, data: Circuits) -> dict[str, Any]:
        hidden = self.hidden(data)
        made: dict[str, Any] = {}
        sizes = [len(graph_of(circuit)[0]) for circuit in data.circuits]
        smallest = int(np.argmin(sizes))
        if sizes[smallest] <= figures.DRAWN:
            rows = hidden.circuit == smallest
            made[f"{data.ids[smallest]}: hidden gates as they were told, wrong ones crossed"] = figures.of_circuit(
                data.circuits[smallest], hidden.node[rows], hidden.said[rows]
            )
        made["Hidden gates: what they are (rows) and what they were taken for (columns), shares"] = figures.of_types(
            hidden.truth, hidden.said
        )
        if len(data) > 2:
            vectors = np.concatenate([part.vectors for part in self._stream(data, None, None)])
            made["Circuits by their vectors, first two principal components"] = figures.of_map(
                vectors, data.ids, data.labels()
            )
        return made

    # -- official weights --------------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: Any) -> MGVGASystem:
        """From the authors' checkpoint (a file, or its state dict): texts are then stored vectors of its width."""
        state = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        weights, sizes = from_official_keys(state)
        config = cls.Config.build(
            dim=sizes.dim, layers=sizes.layers, cross_layers=sizes.cross_layers, text_width=sizes.text_width
        )
        assets = {"text": "vectors", "text_width": sizes.text_width, "majority": AND}
        return cls(config)._imported(assets, {f"mgvga.{k}": v for k, v in weights.items()}, str(checkpoint)[:200])
