"""The networks of Meta-DT: context encoder, reward and state decoder, policy transformer; official key names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

EMBEDDED = 16
"""Width of the embedded state, action and reward in the world model, and of the policy's embedded state."""
FAR = -1e4
"""What attention adds to the logit of a padded key."""


def _xavier(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "gru" in name and parameter.ndim == 2:
            nn.init.orthogonal_(parameter)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)


def _embedding(width: int, embedded: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embedded), nn.ReLU())


class ContextEncoder(nn.Module):
    """From the last h steps to the task representation z (section 4.1; a GRU over embedded action, state, reward).

    Args:
        state_dim, action_dim: widths of observations and actions.
        context_dim: width of z.
        hidden: width of the GRU.
    """

    def __init__(
        self, state_dim: int, action_dim: int, context_dim: int = 16, hidden: int = 128, embedded: int = EMBEDDED
    ) -> None:
        super().__init__()
        self.state_encoder = _embedding(state_dim, embedded)
        self.action_encoder = _embedding(action_dim, embedded)
        self.reward_encoder = _embedding(1, embedded)
        self.gru = nn.GRU(3 * embedded, hidden)
        self.context_output = nn.Linear(hidden, context_dim)
        _xavier(self)

    def forward(self, states: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """z [..., context_dim] from segments [h, ..., width], oldest first, zero before the trajectory began."""
        tokens = [self.action_encoder(actions), self.state_encoder(states), self.reward_encoder(rewards)]
        lead = states.shape[1:-1]
        _, last = self.gru(torch.cat(tokens, dim=-1).flatten(1, -2))
        return self.context_output(last[0]).unflatten(0, lead)


class _Decoder(nn.Module):
    def __init__(self, state_dim: int, action_dim: int, width: int, hidden: int, out: int, embedded: int) -> None:
        super().__init__()
        self.state_encoder = _embedding(state_dim, embedded)
        self.action_encoder = _embedding(action_dim, embedded)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, out)

    def head(self, *parts: Tensor) -> Tensor:
        hidden = F.relu(self.linear1(torch.cat(parts, dim=-1)))
        return self.linear3(F.relu(self.linear2(hidden)))


class RewardDecoder(_Decoder):
    """R(s, a, s', z): the reward of a step [..., 1]; s and s' share one embedding."""

    def __init__(
        self, state_dim: int, action_dim: int, context_dim: int = 16, hidden: int = 128, embedded: int = EMBEDDED
    ) -> None:
        super().__init__(state_dim, action_dim, 3 * embedded + context_dim, hidden, 1, embedded)
        _xavier(self)

    def forward(self, states: Tensor, actions: Tensor, next_states: Tensor, context: Tensor) -> Tensor:
        return self.head(
            self.state_encoder(states), self.action_encoder(actions), self.state_encoder(next_states), context
        )


class StateDecoder(_Decoder):
    """T(s, a, z): the next observation [..., state_dim], not normalised."""

    def __init__(
        self, state_dim: int, action_dim: int, context_dim: int = 16, hidden: int = 128, embedded: int = EMBEDDED
    ) -> None:
        super().__init__(state_dim, action_dim, 2 * embedded + context_dim, hidden, state_dim, embedded)
        self.reward_encoder = _embedding(1, embedded)  # unused; official checkpoints hold it
        _xavier(self)

    def forward(self, states: Tensor, actions: Tensor, context: Tensor) -> Tensor:
        return self.head(self.state_encoder(states), self.action_encoder(actions), context)


class WorldModel(nn.Module):
    """Context encoder and the decoders of what tasks differ in: ``reward``, ``state`` (dynamics), or ``both``.

    ``use_context=False`` is the ablation: z is 0, in training and after.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        context_dim: int = 16,
        hidden: int = 128,
        decoder: str = "reward",
        embedded: int = EMBEDDED,
        use_context: bool = True,
    ) -> None:
        super().__init__()
        widths = (state_dim, action_dim, context_dim, hidden, embedded)
        self.use_context = use_context
        self.context_encoder = ContextEncoder(*widths)
        self.reward_decoder = RewardDecoder(*widths) if decoder in ("reward", "both") else None
        self.state_decoder = StateDecoder(*widths) if decoder in ("state", "both") else None

    def encode(self, states: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """z [..., context_dim] of segments [h, ..., width]."""
        context = self.context_encoder(states, actions, rewards)
        return context if self.use_context else torch.zeros_like(context)

    def errors(
        self, states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor, context: Tensor
    ) -> dict[str, Tensor]:
        """Prediction minus truth of each decoder: ``reward`` [..., 1], ``state`` [..., state_dim]."""
        found = {}
        if self.reward_decoder is not None:
            found["reward"] = self.reward_decoder(states, actions, next_states, context) - rewards
        if self.state_decoder is not None:
            found["state"] = self.state_decoder(states, actions, context) - next_states
        return found

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> WorldModel:
        """Built by the shapes of an official state dict (``context_encoder.*`` and one decoder or both)."""
        decoders = [name for name in ("reward", "state") if f"{name}_decoder.linear1.weight" in state]
        model = cls(
            state_dim=state["context_encoder.state_encoder.0.weight"].shape[1],
            action_dim=state["context_encoder.action_encoder.0.weight"].shape[1],
            context_dim=state["context_encoder.context_output.weight"].shape[0],
            hidden=state["context_encoder.gru.weight_hh_l0"].shape[1],
            decoder="both" if len(decoders) == 2 else decoders[0],
            embedded=state["context_encoder.state_encoder.0.weight"].shape[0],
        )
        model.load_state_dict(state)
        return model


# -- policy ---------------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """A linear map whose weight is [in, out], as GPT-2's checkpoints have it."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, out))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with GPT-2's names; ``queries`` names the positions that are asked for.

    GPT-2's mask is finite: a query that sees nothing but padding looks at later tokens too, each with logit 0. Where
    the mask is twice as wide as the tokens, its second half is for these.
    """

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = Conv1D(3 * hidden, hidden)
        self.c_proj = Conv1D(hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor, queries: Tensor | None = None) -> Tensor:
        if queries is None:
            q, k, v = self.c_attn(x).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            weight, bias = self.c_attn.weight, self.c_attn.bias
            q = F.linear(x[:, queries], weight[:, :width].T, bias[:width])
            k, v = F.linear(x, weight[:, width:].T, bias[width:]).chunk(2, dim=-1)
        if mask.shape[-1] > x.shape[1]:
            k, v = torch.cat([k, torch.zeros_like(k)], dim=1), torch.cat([v, v], dim=1)
        q, k, v = (rearrange(part, "b t (h c) -> b h t c", h=self.heads) for part in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.to(q.dtype), dropout_p=self.dropout if self.training else 0.0
        )
        return F.dropout(self.c_proj(rearrange(out, "b h t c -> b t (h c)")), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with ReLU."""

    def __init__(self, hidden: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = Conv1D(inner, hidden)
        self.c_proj = Conv1D(hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.relu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """A pre-norm GPT-2 block."""

    def __init__(self, hidden: int, heads: int, dropout: float, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads, dropout)
        self.ln_2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden, inner, dropout)

    def forward(self, x: Tensor, mask: Tensor, queries: Tensor | None = None) -> Tensor:
        kept = x if queries is None else x[:, queries]
        kept = kept + self.attn(self.ln_1(x), mask, queries)
        return kept + self.mlp(self.ln_2(kept))


class Transformer(nn.Module):
    """GPT-2 without position embedding; ``wte`` is unused and exists in official checkpoints."""

    def __init__(self, hidden: int, layers: int, heads: int, dropout: float, inner: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.wte = nn.Embedding(1, hidden)
        self.h = nn.ModuleList(Block(hidden, heads, dropout, inner) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        for module in self.modules():
            if isinstance(module, (Conv1D, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor, present: Tensor, queries: Tensor | None = None) -> Tensor:
        """Hidden states [batch, tokens or queries, hidden].

        Args:
            tokens: embedded [batch, tokens, hidden].
            present: [batch, tokens], 0 where a token is padding.
            queries: positions that are asked for: the last block is evaluated there alone, and tokens that see
                nothing but padding are not those of GPT-2.
        """
        n = tokens.shape[1]
        past = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        padding = rearrange((1.0 - present.float()) * FAR, "b k -> b 1 1 k")
        mask = torch.where(past, padding, -torch.inf)
        if queries is None:
            blind = rearrange(present.cumsum(dim=1) == 0, "b q -> b 1 q 1")
            later = torch.where(blind & (padding == 0), FAR, -torch.inf)
            mask = torch.cat([mask, later], dim=-1)
        x = F.dropout(tokens, self.dropout, self.training)
        for block in self.h[:-1]:
            x = block(x, mask)
        return self.ln_f(self.h[-1](x, mask if queries is None else mask[:, :, queries], queries))


class Prompt(NamedTuple):
    """A piece of a trajectory of the same task, to be put in front: [batch, length, ...], states normalised.

    Attributes:
        present: [batch, length], 0 where there is no step.
    """

    states: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    present: Tensor


class MetaDecisionTransformer(nn.Module):
    """Decision transformer whose state tokens carry the task representation (section 4.2).

    Args:
        state_dim, action_dim, context_dim: widths of observations, actions, z.
        hidden, layers, heads, dropout: of the transformer; its inner width is ``4 hidden``.
        max_ep_len: number of different timesteps.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        context_dim: int = 16,
        hidden: int = 128,
        layers: int = 3,
        heads: int = 1,
        dropout: float = 0.1,
        max_ep_len: int = 200,
        inner: int | None = None,
        embedded: int = EMBEDDED,
    ) -> None:
        super().__init__()
        self.max_ep_len = max_ep_len
        self.transformer = Transformer(hidden, layers, heads, dropout, inner or 4 * hidden)
        self.embed_timestep = nn.Embedding(max_ep_len, hidden)
        self.embed_return = nn.Linear(1, hidden)
        self.embed_action = nn.Linear(action_dim, hidden)
        self.state_encoder = nn.Linear(state_dim, embedded)
        self.embed_state = nn.Linear(embedded + context_dim, hidden)
        self.prompt_embed_timestep = nn.Embedding(max_ep_len, hidden)
        self.prompt_embed_return = nn.Linear(1, hidden)
        self.prompt_embed_state = nn.Linear(state_dim, hidden)
        self.prompt_embed_action = nn.Linear(action_dim, hidden)
        self.embed_ln = nn.LayerNorm(hidden)
        self.predict_state = nn.Linear(hidden, state_dim)
        self.predict_action = nn.Sequential(nn.Linear(hidden, action_dim), nn.Tanh())
        self.predict_return = nn.Linear(hidden, 1)

    def forward(
        self,
        states: Tensor,
        contexts: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        present: Tensor,
        prompt: Prompt | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted next states, actions and returns at each step, [batch, steps, ...].

        Args:
            states: [batch, steps, state_dim], normalised.
            contexts: z, [batch, steps, context_dim].
            actions: [batch, steps, action_dim].
            returns_to_go: [batch, steps, 1], divided by the return scale.
            timesteps: [batch, steps], below ``max_ep_len``.
            present: [batch, steps], 0 where padded.
        """
        tokens, mask = self._tokens(states, contexts, actions, returns_to_go, timesteps, present, prompt)
        hidden = self.transformer(tokens, mask)[:, -3 * states.shape[1] :]
        _, of_states, of_actions = rearrange(hidden, "b (t kind) c -> kind b t c", kind=3)
        return self.predict_state(of_actions), self.predict_action(of_states), self.predict_return(of_actions)

    def actions(
        self,
        states: Tensor,
        contexts: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        present: Tensor,
        prompt: Prompt | None = None,
    ) -> Tensor:
        """The actions that ``forward`` predicts, at less cost: the last block looks only from the state tokens."""
        tokens, mask = self._tokens(states, contexts, actions, returns_to_go, timesteps, present, prompt)
        length, steps = tokens.shape[1], states.shape[1]
        queries = torch.arange(length - 3 * steps + 1, length, 3, device=tokens.device)
        return self.predict_action(self.transformer(tokens, mask, queries))

    def _tokens(
        self,
        states: Tensor,
        contexts: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        present: Tensor,
        prompt: Prompt | None,
    ) -> tuple[Tensor, Tensor]:
        time = self.embed_timestep(timesteps)
        state = self.embed_state(torch.cat([self.state_encoder(states), contexts], dim=-1))
        tokens = [self.embed_return(returns_to_go) + time, state + time, self.embed_action(actions) + time]
        stacked = self.embed_ln(rearrange(tokens, "kind b t c -> b (t kind) c"))
        mask = repeat(present, "b t -> b (t kind)", kind=3)
        if prompt is None:
            return stacked, mask
        time = self.prompt_embed_timestep(prompt.timesteps)
        front = [
            self.prompt_embed_return(prompt.returns_to_go) + time,
            self.prompt_embed_state(prompt.states) + time,
            self.prompt_embed_action(prompt.actions) + time,
        ]
        stacked = torch.cat([rearrange(front, "kind b t c -> b (t kind) c").to(stacked.dtype), stacked], dim=1)
        return stacked, torch.cat([repeat(prompt.present, "b t -> b (t kind)", kind=3), mask], dim=1)

    @classmethod
    def from_official(
        cls, state: Mapping[str, Tensor], heads: int = 1, dropout: float = 0.1
    ) -> MetaDecisionTransformer:
        """Built by the shapes of an official state dict; its constant attention masks are left out."""
        state = {k: v for k, v in state.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
        embedded, state_dim = state["state_encoder.weight"].shape
        model = cls(
            state_dim=state_dim,
            action_dim=state["embed_action.weight"].shape[1],
            context_dim=state["embed_state.weight"].shape[1] - embedded,
            hidden=state["embed_action.weight"].shape[0],
            layers=len({key.split(".")[2] for key in state if key.startswith("transformer.h.")}),
            heads=heads,
            dropout=dropout,
            max_ep_len=state["embed_timestep.weight"].shape[0],
            inner=state["transformer.h.0.mlp.c_fc.weight"].shape[1],
            embedded=embedded,
        )
        model.load_state_dict(state)
        return model


class MetaDT(nn.Module):
    """World model and policy together: what a run stores."""

    def __init__(self, world: WorldModel, policy: MetaDecisionTransformer) -> None:
        super().__init__()
        self.world, self.policy = world, policy
