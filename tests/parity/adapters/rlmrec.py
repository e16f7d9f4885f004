"""RLMRec: the room's backbones, alignments and rankings on the fixtures' weights, interactions and draws."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.systems.rlmrec import backbones
from repertory.systems.rlmrec.alignment import Alignment, Contrastive, Generative, Triples
from repertory.systems.rlmrec.graph import Bipartite, Edges
from repertory.systems.rlmrec.model import RLMRec, from_official_keys, official_key
from repertory.systems.rlmrec.ranking import Chosen, best, of_rankings, scored
from tests.parity.runner import Fixture


def _backbone(f: Fixture, name: str) -> backbones.Backbone:
    c = f.config
    pairs = torch.stack([f.inputs["train_rows"], f.inputs["train_cols"]], dim=1)
    graph = Bipartite(c["users"], c["items"], pairs, loops=name == "gccf")
    contrast = [c.get("cl_weight"), c.get("cl_temperature")]
    views = [graph, c["dim"], c.get("layer_num"), c.get("keep_rate", 1.0), *contrast]
    if name == "autocf":
        return backbones.AutoCF(
            graph, c["dim"], c["gcn_layer"], c["gt_layer"], c["head_num"], c["seed_num"], c["mask_depth"],
            c["fix_steps"], c["ssl_reg"],
        )  # fmt: skip
    if name == "dccf":
        return backbones.DCCF(graph, c["dim"], c["layer_num"], c["intent_num"], *contrast)
    if name == "sgl":
        return backbones.SGL(*views, augmentation=c["augmentation"])
    if name == "simgcl":
        return backbones.SimGCL(*views, eps=c["eps"])
    return {"lightgcn": backbones.LightGCN, "gccf": backbones.GCCF}[name](*views[:4])


def _model(f: Fixture, name: str, variant: str) -> RLMRec:
    c, backbone = f.config, _backbone(f, name)
    texts = torch.cat([f.inputs["user_semantic"], f.inputs["item_semantic"]])
    alignment = Alignment()
    if variant == "con":
        alignment = Contrastive(
            texts, c["users"], backbone.width, c["kd_weight"], c["kd_temperature"], backbone.negatives
        )
    elif variant == "gen":
        alignment = Generative(
            texts, c["users"], c["dim"], backbone.width, c["mask_ratio"], c["recon_weight"], c["re_temperature"]
        )
    model = RLMRec(backbone, alignment, c["reg_weight"]).to(texts.dtype)
    model.load_state_dict(from_official_keys(f.state))
    return model


def _draws(f: Fixture, backbone: backbones.Backbone) -> backbones.Draws:
    names, made = f.inputs, backbones.Draws(masked=f.inputs.get("masked_nodes"))
    nodes = f.config["users"] + f.config["items"]
    if "edge_index_for_keep" in names:
        rows, cols = names["edge_index_for_keep"]
        order = torch.argsort(rows * nodes + cols)  # entries here are by row and then column
        views = sorted(name for name in names if name.startswith("edge_keep_view") and "layer" not in name)
        made.kept = [names[view][order] for view in views]
        if not views:
            made.kept = [
                [names[f"edge_keep_view{v}_layer{l + 1}"][order] for l in range(f.config["layer_num"])] for v in (1, 2)
            ]
    if "noise_view1_layer1" in names:
        made.noise = [[names[f"noise_view{v}_layer{l + 1}"] for l in range(f.config["layer_num"])] for v in (1, 2)]
    if "encoder_index" in names:
        made.graphs = tuple(_graph(f, part, nodes) for part in ("encoder", "decoder"))
    return made


def _graph(f: Fixture, part: str, nodes: int) -> tuple[Edges, Tensor]:
    rows, cols = f.inputs[f"{part}_index"]
    return Edges(rows, cols, nodes), f.inputs[f"{part}_value"][torch.argsort(rows * nodes + cols)]


def _part(name: str, variant: str):
    def run(f: Fixture) -> dict[str, Tensor]:
        model = _model(f, name, variant)
        batch = Triples(f.inputs["anchors"], f.inputs["positives"], f.inputs["negatives"])
        made = {}
        if name == "autocf":
            scores = model.backbone.scores(model.backbone.nodes(), f.inputs["score_uniform"])
            made = {"sample_scores": scores, "sample_seeds": scores.topk(model.backbone.seeds).indices}
        terms = model(batch, _draws(f, model.backbone))
        loss = sum(terms.values())
        loss.backward()
        made |= {f"loss.{term}": value for term, value in terms.items()} | {"loss": loss}
        for official in f.state:
            gradient = model.get_parameter(official_key(official)).grad
            if gradient is not None:
                made[f"grad.{official}"] = gradient
        every = torch.arange(f.config["users"]).numpy()
        pairs = torch.stack([f.inputs["train_rows"], f.inputs["train_cols"]], dim=1).numpy()
        removed = Chosen(pairs, f.config["users"], f.config["items"])
        with torch.no_grad():
            blocks = [scores for _, scores in scored(*model.embeddings(), removed, every)]
        return made | {"scores_masked": torch.cat(blocks)}

    return run


def metrics(f: Fixture) -> dict[str, Tensor]:
    scores, ks = f.inputs["scores"], f.config["k"]
    truth = torch.stack([f.inputs["truth_user"], f.inputs["truth_item"]], dim=1).numpy()
    relevant = Chosen(truth, *scores.shape)
    top = best(scores, max(ks))
    users = torch.arange(len(scores)).numpy()
    hits = relevant.has(users[:, None], top.numpy())
    asked = relevant.sizes > 0
    made = of_rankings(hits[asked], relevant.sizes[asked], ks)
    return {"topk": top} | {name: torch.from_numpy(values).mean(0) for name, values in made.items()}


NAMES = (
    "lightgcn_base", "lightgcn_con", "lightgcn_gen", "gccf_base", "gccf_con", "gccf_gen", "sgl_base", "sgl_con",
    "sgl_gen", "simgcl_base", "simgcl_con", "simgcl_gen", "dccf_base", "dccf_con", "dccf_gen", "autocf_base",
    "autocf_con", "autocf_gen",
)  # fmt: skip
PARTS = {name: _part(*name.split("_")) for name in NAMES} | {"metrics": metrics}
