"""The two trainings: the world model, then the policy on its frozen contexts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repertory.data.trajectories import Trajectories
from repertory.systems.meta_dt.data import PADDED_ACTION, Steps, encode_all, errors_of
from repertory.systems.meta_dt.model import MetaDT, Prompt
from repertory.systems.meta_dt.objective import action_loss, step_errors, world_loss
from repertory.systems.meta_dt.prompts import Prompts, Scaling
from repertory.training import StageModule


class WorldStage(StageModule):
    """Predicts rewards, next observations, or both, from a step and the context before it; Adam, no schedule."""

    def __init__(self, model: MetaDT, train: Steps, val: Steps, config: Any) -> None:
        super().__init__()
        self.model, self.train_steps, self.val_steps, self.config = model, train, val, config

    def training_step(self, rows: Tensor) -> Tensor:
        losses = self._losses(self.train_steps, rows)
        self.log_dict({f"train/{name}_error": loss for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, rows: Tensor) -> None:
        losses = self._losses(self.val_steps, rows)
        self.log_dict({f"val/{name}_error": loss for name, loss in losses.items()}, batch_size=len(rows))
        self.log("val_loss", torch.stack(list(losses.values())).sum(), batch_size=len(rows))

    def _losses(self, steps: Steps, rows: Tensor) -> dict[str, Tensor]:
        world = self.model.world
        context = world.encode(*steps.segments(rows, self.config.context_horizon))
        inputs = (part[rows] for part in (steps.states, steps.actions, steps.rewards, steps.next_states))
        return world_loss(world.errors(*inputs, context))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.model.world.parameters(), self.config.world_clip)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.world.parameters(), self.config.world_lr, fused=True)


class Windows(nn.Module):
    """Training samples of the policy, gathered from flat steps when they are asked for (section 4.2).

    Args:
        model: its world model gives contexts and prediction errors, once, for all steps.
        items: the episodes.
        scaling: of what the policy sees.
        config: horizons and the choice of prompts.
    """

    contexts: Tensor
    task_of: Tensor

    def __init__(self, model: MetaDT, items: Trajectories, scaling: Scaling, config: Any, device: torch.device) -> None:
        super().__init__()
        self.horizon, self.scaling = config.horizon, scaling
        self.steps = Steps.of(items).to(device)
        _, tasks = np.unique(items.column("task").astype(str), return_inverse=True)
        with torch.no_grad():
            contexts = encode_all(model.world, self.steps, config.context_horizon)
            errors = step_errors(errors_of(model.world, self.steps, contexts))
        lengths = self.steps.length[self.steps.starts].cpu().numpy()
        self.prompts: Prompts | None = None
        if config.prompt != "none":
            self.prompts = Prompts(
                self.steps, errors, tasks, scaling, config.prompt_length, config.context_horizon, config.prompt_choice
            )
        self.register_buffer("contexts", contexts, persistent=False)
        self.register_buffer("task_of", torch.from_numpy(np.repeat(tasks, lengths)).to(device), persistent=False)

    def draw_prompt(self, rows: Tensor) -> Prompt | None:
        """A prompt from the task of each of the windows that begin at ``rows``."""
        return None if self.prompts is None else self.prompts.draw(self.task_of[rows])

    def window(self, rows: Tensor) -> tuple[Tensor, ...]:
        """States, contexts, actions, returns to go, timesteps, present of the windows that begin at ``rows`` [B]."""
        steps = self.steps
        index, present = steps.windows(rows, self.horizon)
        there = present.unsqueeze(-1)
        return (
            self.scaling.states(steps.states[index]) * there,
            self.contexts[index] * there,
            torch.where(there, steps.actions[index], PADDED_ACTION),
            steps.to_go[index] * there / self.scaling.return_scale,
            self.scaling.times(steps.time[index]) * present,
            present.float(),
        )


class PolicyStage(StageModule):
    """Predicts the actions of windows; the world model is frozen. AdamW, linear warm-up, clipped gradients."""

    def __init__(self, model: MetaDT, train: Trajectories, val: Trajectories, scaling: Scaling, config: Any) -> None:
        super().__init__()
        self.model, self.items, self.scaling, self.config = model, (train, val), scaling, config
        self._windows: list[Windows] = []

    def on_train_start(self) -> None:
        """Contexts and errors of all steps, now that the world model is there."""
        self.scaling.to(self.device)
        self._windows = [Windows(self.model, items, self.scaling, self.config, self.device) for items in self.items]

    def training_step(self, rows: Tensor) -> Tensor:
        loss = self._loss(self._windows[0], rows, self.step >= self.config.warm_train)
        self.log("train/action_error", loss)
        return loss

    def validation_step(self, rows: Tensor) -> None:
        self.log("val/action_error", self._loss(self._windows[1], rows, True), batch_size=len(rows))

    def _loss(self, windows: Windows, rows: Tensor, prompted: bool) -> Tensor:
        prompt = windows.draw_prompt(rows) if prompted else None
        if prompt is not None and self.training:
            kept = torch.rand(len(rows), 1, device=rows.device) >= self.config.unprompted
            prompt = prompt._replace(present=prompt.present * kept)
        window = windows.window(rows)
        actions, present = window[2], window[5]
        return action_loss(self.model.policy.actions(*window, prompt), actions, present)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.model.policy.parameters(), self.config.clip)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.model.policy.parameters(), self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        warm = self.config.warmup
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, 1.0))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
