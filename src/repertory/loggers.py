"""The learning curve of a run, beside its own ``metrics.parquet``, in TensorBoard, MLflow or Weights & Biases.

They write where the runs lie: ``PARENT/tensorboard``, ``PARENT/mlruns``, ``PARENT/wandb``, so that the runs of a
folder are seen together. Nothing leaves the machine unless ``MLFLOW_TRACKING_URI`` or ``WANDB_MODE`` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repertory.errors import ConfigError, MissingExtraError, nearest
from repertory.runs import Run

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

LOGGERS = ("tensorboard", "mlflow", "wandb")


def check(name: str | None, run: Any) -> None:
    """Refuses, before anything is written, a logger that is unknown, not installed, or has no place to write.

    Raises:
        ConfigError: the name is unknown, or the run is kept in memory.
        MissingExtraError: its package is not installed.
    """
    if name is None:
        return
    if name not in LOGGERS:
        raise ConfigError(f"log={name}: no logger of this name{nearest(name, LOGGERS)}")
    if find_spec(name) is None:
        raise MissingExtraError(name, "log")
    if run is None:
        raise ConfigError(f"log={name} writes beside the run: name a run directory with run=PATH (--out PATH)")


@contextmanager
def logged(run: Run, name: str | None) -> Iterator[None]:
    """Tells a logger what ``run`` logs inside the block: each value as ``STAGE/NAME``, by its step."""
    if name is None or run.path is None or not run.writes:
        yield
        return
    logger = _open(name, run.path.resolve())
    logger.log_hyperparams({**run.record["config"], "seed": run.record["seed"], "source": run.record["source"]})
    run.loggers = (logger,)
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        run.loggers = ()
        logger.finalize(status)
        if name == "wandb":
            logger.experiment.finish(exit_code=int(status != "success"))  # type: ignore[attr-defined]


def _open(name: str, run: Path) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    if name == "tensorboard":
        return TensorBoardLogger(run.parent, name, run.name)
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other local store
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.parent / "mlruns").as_uri()
        return MLFlowLogger("repertory", run.name, tracking_uri=uri)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    offline = os.environ.get("WANDB_MODE", "offline") == "offline"
    return WandbLogger(run.name, run.parent, offline=offline, project="repertory")
