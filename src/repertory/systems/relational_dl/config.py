"""Hyperparameters of relational deep learning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.systems.relational_dl.sampler import Strategy


class Config(card.Config):
    """Hyperparameters; the defaults are those of RelBench's experiments (section 5 and its scripts)."""

    presets = {
        "tiny": {"channels": 8, "encoder_channels": 8, "blocks": 1, "neighbours": 4, "epochs": 2, "batch_size": 256},
        "nycflights13": {
            "channels": 32, "encoder_channels": 32, "blocks": 1, "dropout": 0.0, "neighbours": 32, "strategy": "last",
            "epochs": 2, "batch_size": 512,
        },
    }  # fmt: skip

    channels: int = Field(128, ge=2, multiple_of=2, description="width of a node's vector")
    layers: int = Field(2, ge=1, description="of message passing, and hops of the neighbourhood")
    convolution: Literal["sage", "gat"] = Field("sage", description="GraphSAGE, or GATv2")
    aggregation: Literal["sum", "mean", "max"] = Field("sum", description="over a node's neighbours, of GraphSAGE")
    heads: int = Field(4, ge=1, description="of attention, averaged")
    encoder_channels: int = Field(128, ge=2, description="of each column and of the row encoder's blocks")
    blocks: int = Field(4, ge=1, description="residual blocks of the row encoder")
    dropout: float = Field(0.2, ge=0, lt=1, description="in the row encoder's blocks")
    temporal: bool = Field(True, description="add the encoded time from a row to its seed")
    shallow: tuple[str, ...] = Field((), description="tables that get a learned vector per row (then not inductive)")
    neighbours: int = Field(
        128, ge=1, description="drawn per node and edge type at the first hop; half as many at each next"
    )
    strategy: Strategy | None = Field(
        None, description="which neighbours: uniform, or the last (most recent); None: uniform, of links last"
    )
    links: Literal["two-tower", "id-gnn"] = Field("two-tower", description="how destinations are recommended")
    share_same_time: bool = Field(True, description="two-tower: batches of one time, every negative for every source")
    text_width: int = Field(300, ge=1, description="of the frozen vectors of texts")
    kept_rows: int = Field(2_000_000, ge=0, description="of larger tables, rows stay in DuckDB until they are drawn")
    share_rows: bool = Field(
        True, description="encode a row once a batch; its copies then share a dropout mask. False: once a neighbourhood"
    )
    lr: float | None = Field(None, gt=0, description="of Adam; None: 0.005, of links 0.001")
    epochs: int | None = Field(None, ge=1, description="at most; None: 10, of links 20")
    steps_per_epoch: int = Field(2000, ge=1, description="at most")
    batch_size: int = Field(512, ge=1, description="seeds")

    @model_validator(mode="after")
    def _fanouts_left(self) -> Config:
        if self.neighbours >> (self.layers - 1) < 1:
            raise ValueError(
                f"neighbours={self.neighbours} halves to nothing over {self.layers} layers: at least "
                f"{1 << (self.layers - 1)} are needed"
            )
        return self

    @property
    def fanouts(self) -> list[int]:
        """Of each hop."""
        return [self.neighbours >> hop for hop in range(self.layers)]
