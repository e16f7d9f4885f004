"""Hyperparameters of ERASE."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.systems.erase.labels import Form
from repertory.systems.erase.model import Convolution
from repertory.systems.erase.noise import Noise

SMALL = {"hidden": 64, "dim": 64, "validate_every": 5, "noise": 0.5}


class Config(card.Config):
    """Hyperparameters; the defaults are the paper's for Cora, presets hold those of its other graphs (section 3.6)."""

    presets = {
        "tiny": {**SMALL, "epochs": 20},
        "digits-graph": {**SMALL, "epochs": 60},
        "citeseer": {"eps": 0.4, "beta": 0.7, "times": 4},
        "pubmed": {"gam2": 3.0, "times": 3},
        "cora-full": {"eps": 0.01, "alpha": 0.7, "beta": 0.7, "times": 2},
        "ogbn-arxiv": {
            "form": "sampled", "hidden": 64, "beta": 0.5, "times": 50, "lr": 0.01, "epochs": 5, "row_normalise": False,
            "regression_steps": 500,
        },
    }  # fmt: skip

    hidden: int = Field(256, ge=1, description="width of all layers but the last, over all heads")
    dim: int = Field(512, ge=1, description="p, of a vector")
    heads: int = Field(8, ge=1, description="of attention, concatenated; the last layer has one")
    layers: int = Field(2, ge=2, description="of attention")
    convolution: Convolution = Field("GAT", description="GAT or GATv2")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the input of all layers but the last")
    form: Form = Field("full", description="full: the whole graph in a step; sampled: for graphs too large for that")
    alpha: float = Field(0.6, ge=0, le=1, description="weight of the old scores in a propagation (of the new: sampled)")
    beta: float = Field(0.6, ge=0, le=1, description="weight of denoised labels against similarity to prototypes")
    times: int = Field(5, ge=0, description="T, propagations")
    eps: float = Field(0.05, gt=0, description="squared distortion of the coding rate")
    gam1: float = Field(1.0, gt=0, description="weight of the rate within classes")
    gam2: float = Field(2.0, gt=0, description="weight of the rate of all vectors")
    empty_class: Literal["raise", "zero"] = Field(
        "raise", description="a class that no training node keeps once labels are denoised; zero: it has no prototype"
    )
    row_normalise: bool = Field(True, description="divide each node's features by the sum of their absolute values")
    lr: float = Field(1e-3, gt=0, description="of Adam (AMSGrad in the full form)")
    weight_decay: float = Field(5e-4, ge=0, description="of Adam")
    epochs: int = Field(400, ge=1, description="at most; of the full form, steps")
    patience: int = Field(150, ge=1, description="epochs without a better validation accuracy before training ends")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    regression_steps: int = Field(1000, ge=1, description="of the logistic regression on pseudo-labels, at most")
    seeds: int = Field(200, ge=1, description="training nodes of a step of the sampled form")
    neighbours: int = Field(5, ge=1, description="drawn for a node at each hop of the sampled form")
    batch_size: int = Field(4096, ge=1, description="nodes that are embedded together, with all their neighbours")
    noise: float = Field(
        0.0, ge=0, le=1, description="share of training labels made wrong before the fit, to experiment"
    )
    noise_model: Noise = Field("symmetric", description="to any other class, or asymmetric: to one of each class's own")

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} do not divide hidden={self.hidden}")
        return self
