"""MGVGA's hyperparameters; the paper's by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.errors import ConfigError

Task = Literal["qor", "equivalence"]

SMALL = {"dim": 32, "layers": 4, "text_width": 256, "batch_size": 4, "lr": 2e-3}


class Config(card.Config):
    """Hyperparameters; the paper's by default."""

    presets = {
        "tiny": {
            "dim": 16, "layers": 3, "cross_layers": 1, "text_width": 32, "batch_size": 4, "lr": 2e-3, "steps": 20,
            "tasks": ["equivalence"], "task_steps": 10,
        },
        "real-circuits": {**SMALL, "steps": 300, "tasks": ["equivalence"], "task_steps": 400, "task_lr": 3e-3},
        "generated-circuits": {**SMALL, "steps": 400, "tasks": ["equivalence"], "task_steps": 400, "task_lr": 3e-3},
    }  # fmt: skip

    dim: int = Field(64, ge=2, description="width of node and circuit vectors")
    layers: int = Field(7, ge=2, description="blocks of the encoder")
    cross_layers: int = Field(2, ge=1, description="blocks of the alignment decoder")
    dropout: float = Field(0.1, ge=0, lt=1, description="in MLPs of decoder and heads")

    text: Literal["auto", "vectors", "verilog", "none"] = Field(
        "auto",
        description="what the alignment reads: stored vectors, Verilog, nothing (gates hidden before encoding are then "
        "told from the graph alone); auto: vectors where all have them, else Verilog where there is any",
    )
    text_encoder: EncoderAddress | None = Field(
        None, description="hf:NAME, a frozen language model for Verilog (the paper: gte-Qwen2-7B); None: hashed words"
    )
    text_tokens: int = Field(512, ge=1, description="of a text, for a language model")
    text_width: int = Field(3584, ge=1, description="of hashed words; vectors and language models bring their own")

    mask_ratio: float = Field(0.3, gt=0, lt=1, description="share of nodes hidden after encoding (MGM)")
    align_ratio: float = Field(
        0.7, gt=0, lt=1, description="share hidden before encoding (VGA): 0.7 in the script, 0.5 in a checkpoint's name"
    )

    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(0.1, ge=0, le=1, description="share of lr at the end of the cosine")
    weight_decay: float = Field(0.01, ge=0, description="not of biases; norms do decay, as officially")
    batch_size: int = Field(512, ge=1, description="circuits a step; the paper: 1, 64 accumulated, on 8 devices")
    epochs: float = Field(3, gt=0, description="without steps")
    steps: int | None = Field(None, ge=1, description="batches, in place of epochs")

    tasks: tuple[Task, ...] = Field(
        (), description="heads trained on the frozen encoder: qor (results of synthesis), equivalence (of node pairs)"
    )
    recipes: int = Field(16, ge=2, description="synthesis recipes tried on each design that brings no results (qor)")
    recipe_steps: int = Field(20, ge=1, description="steps of such a recipe; 20 in the paper")
    task_lr: float = Field(1e-3, gt=0)
    task_steps: int = Field(1000, ge=1, description="batches of each head's training")
    most_pairs: int = Field(500, ge=1, description="pairs of either sort a design (equivalence)")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        if self.text_encoder is not None and self.text in ("vectors", "none"):
            raise ConfigError(f"text_encoder reads Verilog; with text={self.text} it would read nothing")
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"tasks: {', '.join(self.tasks)} names one twice")
        return self
