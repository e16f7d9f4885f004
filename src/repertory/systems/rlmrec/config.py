"""Hyperparameters, and those that were published for each backbone, alignment and data set."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from repertory import card
from repertory.systems.rlmrec.backbones import Augmentation

BackboneName = Literal["lightgcn", "gccf", "sgl", "simgcl", "dccf", "autocf"]
Variant = Literal["base", "con", "gen"]
DATA_SETS = ("amazon", "yelp", "steam")
PUBLISHED: dict[BackboneName, dict[str, dict[str, Any]]] = {
    "lightgcn": {
        "con": {"layers": 3, "reg_weight": (1e-7, 1e-7, 1e-8), "align_weight": (1e-2, 1e-2, 1e-3),
                "align_temperature": (0.2, 0.2, 0.1)},
        "gen": {"layers": 2, "reg_weight": (1e-7, 1e-7, 1e-6), "align_weight": (0.1, 0.01, 0.1),
                "align_temperature": (0.5, 0.1, 0.5), "mask_ratio": (0.15, 0.05, 0.15)},
    },
    "gccf": {
        "con": {"layers": 2, "reg_weight": 1e-6, "align_weight": (1e-3, 1e-3, 1e-2),
                "align_temperature": (0.1, 0.2, 0.5)},
        "gen": {"layers": 2, "reg_weight": (1e-7, 1e-6, 1e-6), "align_weight": 0.01,
                "align_temperature": (0.1, 1.0, 0.1), "mask_ratio": (0.1, 0.05, 0.1)},
    },
    "sgl": {
        "con": {"align_weight": 1e-2, "align_temperature": (0.5, 1.0, 1.0)},
        "gen": {"align_weight": 0.1, "align_temperature": 0.2, "mask_ratio": (0.2, 0.15, 0.1)},
    },
    "simgcl": {
        "base": {"layers": 3, "reg_weight": 1e-5, "cl_weight": 0.1, "cl_temperature": (0.2, 0.2, 0.5),
                 "eps": (0.9, 0.9, 0.2)},
        "con": {"align_weight": 1e-2, "align_temperature": (0.2, 0.1, 0.2)},
        "gen": {"align_weight": (0.1, 0.01, 0.01), "align_temperature": (0.2, 0.05, 0.1),
                "mask_ratio": (0.05, 0.01, 0.05)},
    },
    "dccf": {
        "base": {"layers": (2, 2, 3), "reg_weight": (1e-4, 1e-4, 1e-3), "cl_weight": 1e-3, "cl_temperature": 0.1},
        "con": {"align_weight": 1e-2, "align_temperature": (0.5, 0.2, 0.5)},
        "gen": {"align_weight": (0.1, 0.01, 0.01), "align_temperature": (0.2, 0.1, 0.2),
                "mask_ratio": (0.05, 0.05, 0.1)},
    },
    "autocf": {
        "con": {"align_weight": (0.1, 0.01, 0.01), "align_temperature": (0.5, 0.1, 0.2)},
        "gen": {"align_weight": (1.0, 0.1, 1.0), "align_temperature": (0.5, 0.1, 0.2), "mask_ratio": 0.2},
    },
}  # fmt: skip
"""Settings of the official code, one value or one for each of ``DATA_SETS``."""
OTHERWISE = {
    "layers": 3, "reg_weight": 1e-7, "align_weight": 1e-2, "align_temperature": 0.2, "mask_ratio": 0.1,
    "cl_weight": 0.1, "cl_temperature": 0.2, "eps": 0.9,
}  # fmt: skip
"""Where nothing is known of the official setting."""


class Config(card.Config):
    """Hyperparameters; the defaults are those of the official code, LightGCN-Con on Amazon-book.

    Fields that are None take what was published for the backbone, the variant and the data set named by ``like``.
    """

    presets = {
        "tiny": {
            "dim": 8, "layers": 1, "epochs": 3, "lr": 0.01, "batch_size": 256, "text_width": 8, "validate_every": 1,
        },
        "movielens-100k": {
            "layers": 2, "reg_weight": 1e-6, "epochs": 60, "lr": 0.005, "batch_size": 4096, "text_width": 48,
            "validate_every": 5,
        },
    }  # fmt: skip

    backbone: BackboneName = Field("lightgcn", description="the recommender that texts are aligned with")
    variant: Variant = Field(
        "con", description="alignment with texts: base (none), con (contrast), gen (reconstruction)"
    )
    like: Literal["amazon", "yelp", "steam"] = Field("amazon", description="whose published settings fill what is None")
    dim: int = Field(32, ge=1, description="of the initial embeddings")
    layers: int | None = Field(None, ge=1, description="of the graph (AutoCF has its own)")
    keep_rate: float = Field(
        0.8, gt=0, le=1, description="with which an edge is kept in training (LightGCN, GCCF, SGL)"
    )
    reg_weight: float | None = Field(None, ge=0, description="of the squares of all parameters")
    align_weight: float | None = Field(None, ge=0, description="of the alignment: kd_weight (Con), recon_weight (Gen)")
    align_temperature: float | None = Field(None, gt=0, description="of the alignment")
    mask_ratio: float | None = Field(None, gt=0, lt=1, description="share of users and items masked in a step (Gen)")
    cl_weight: float | None = Field(None, ge=0, description="of the contrast between views (SGL, SimGCL, DCCF)")
    cl_temperature: float | None = Field(None, gt=0, description="of that contrast")
    eps: float | None = Field(None, ge=0, description="length of the noise (SimGCL)")
    augmentation: Augmentation = Field("edge_drop", description="how SGL makes its views")
    intents: int = Field(128, ge=1, description="of users and of items (DCCF)")
    gcn_layers: int = Field(2, ge=1, description="of the encoder (AutoCF)")
    transformer_layers: int = Field(1, ge=1, description="of the decoder (AutoCF)")
    heads: int = Field(4, ge=1, description="of the decoder (AutoCF)")
    seeds: int = Field(100, ge=1, description="nodes around which edges are masked (AutoCF)")
    mask_depth: int = Field(2, ge=1, description="hops around them (AutoCF)")
    fix_steps: int = Field(10, ge=1, description="steps that share a masked graph (AutoCF)")
    ssl_reg: float = Field(1.0, ge=0, description="weight of the spread among users and among items (AutoCF); ours")
    embedder: Literal["tfidf", "wordllama"] = Field("tfidf", description="of texts, where the data bring no vectors")
    text_width: int = Field(256, ge=1, description="of TF-IDF vectors, at most (the paper's are ada-002's, 1536)")
    lr: float = Field(1e-3, gt=0, description="of Adam")
    batch_size: int = Field(4096, ge=1, description="triples of user, chosen item, other item")
    epochs: int = Field(3000, ge=1, description="at most")
    validate_every: int = Field(3, ge=1, description="epochs between validations")
    patience: int | None = Field(5, ge=1, description="validations without a better recall; None: never stop early")
    ks: tuple[int, ...] = Field((5, 10, 20), min_length=1, description="lengths of lists that are measured, ascending")

    def of(self, name: str) -> Any:
        """The value of a field, or what was published for it."""
        given = getattr(self, name)
        if given is not None:
            return given
        published = PUBLISHED[self.backbone]
        # the backbone alone has no settings of its own for most: those of Con are nearest
        known = {
            **OTHERWISE,
            **published.get("base", {}),
            **published["con" if self.variant == "base" else self.variant],
        }
        value = known[name]
        return value[DATA_SETS.index(self.like)] if isinstance(value, tuple) else value
