"""Meta-DT: segments, windows, prompts, readers, environments, acting, official checkpoints, bad input."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import repertory
from repertory import data
from repertory.data.trajectories import Episode, Trajectories, episodes_of
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.meta_dt import (
    MetaDecisionTransformer,
    MetaDTSystem,
    Prompts,
    Scaling,
    Steps,
    WorldModel,
    encode_all,
    window_errors,
    window_probabilities,
)
from repertory.systems.meta_dt.data import PADDED_ACTION
from repertory.systems.meta_dt.model import MetaDT, Prompt
from repertory.systems.meta_dt.stages import Windows

torch.set_num_threads(1)
CHECK = "point-robot?goals=12&episodes=4"
QUICK = {"steps": 4, "warm_train": 2, "world_epochs": 1}


@pytest.fixture(scope="module")
def fitted():
    return repertory.create("meta_dt", "tiny", **QUICK).fit(CHECK)


def transitions(episodes=6, steps=12, states=3, actions=2, seed=0):
    random = np.random.default_rng(seed)
    n = episodes * steps
    return {
        "observations": random.standard_normal((n, states)).astype(np.float32),
        "actions": random.uniform(-1, 1, (n, actions)).astype(np.float32),
        "rewards": random.standard_normal(n).astype(np.float32),
        "next_observations": random.standard_normal((n, states)).astype(np.float32),
        "terminals": np.tile(np.eye(steps)[-1], episodes).astype(np.float32),
    }


def tasks(n=6, **options):
    return {str(k): transitions(seed=k, **options) for k in range(n)}


# -- segments, windows, prompts -----------------------------------------------------------------------------------


def test_segments_and_windows_stay_in_their_episode():
    lengths = [7, 3, 5]
    n = sum(lengths)
    numbers = torch.arange(1.0, n + 1).unsqueeze(-1)
    steps = Steps(numbers, numbers, numbers, numbers, lengths)
    states, _, _ = steps.segments(torch.arange(n), 4)
    for row in range(n):
        time = int(steps.time[row])
        expected = [0.0] * max(0, 4 - time) + [row + 1.0 - back for back in range(min(4, time), 0, -1)]
        assert states[:, row, 0].tolist() == expected
    index, present = steps.windows(torch.tensor([0, 8, 14]), 4)
    assert index[0].tolist() == [0, 1, 2, 3]
    assert present.tolist() == [[True] * 4, [False, False, True, True], [False, False, False, True]]
    assert index[1, 2:].tolist() == [8, 9]
    assert steps.to_go[:7, 0].tolist() == [28, 27, 25, 22, 18, 13, 7]


def test_context_depends_on_the_past_alone(fitted):
    items = fitted.splits.test
    before = encode_all(fitted.model.world, Steps.of(items), 4)
    changed = [Episode(e.observations.copy(), e.actions, e.rewards.copy(), e.next_observations) for e in items.episodes]
    changed[0].rewards[10:] += 3
    after = encode_all(fitted.model.world, Steps.of(Trajectories(items.ids, changed)), 4)
    assert torch.equal(before[:11], after[:11])
    assert not torch.equal(before[11:15], after[11:15])
    assert torch.equal(before[20:], after[20:])


def test_prompts_begin_where_the_error_is_largest():
    lengths, errors = [12, 12, 4, 12], torch.zeros(40)
    errors[7:10] = 1.0
    ones = torch.ones(40, 1)
    rewards = torch.cat([torch.full((12, 1), 1.0), torch.zeros(28, 1)])
    steps, scaling = Steps(ones, ones, rewards, ones, lengths), Scaling(np.zeros(1), np.ones(1), 2.0, 10)
    prompts = Prompts(steps, errors, np.array([0, 0, 1, 2]), scaling, length=3, first=4, choice="largest")
    assert prompts.usable.tolist() == [True, False, True]
    assert prompts.best[0].tolist()[:2] == [0, 1]
    drawn = prompts.draw(torch.zeros(64, dtype=torch.long))
    first = drawn.returns_to_go[:, 0, 0] > 0
    assert (drawn.timesteps[first] == torch.tensor([7, 8, 9])).all()
    assert first.any()
    assert not first.all()
    torch.testing.assert_close(drawn.returns_to_go[first][0, :, 0], torch.tensor([5.0, 4.0, 3.0]) / 2)
    assert prompts.draw(torch.tensor([1])).present.sum() == 0
    sampled = Prompts(steps, errors, np.zeros(4, int), scaling, length=3, first=4, choice="sampled")
    torch.testing.assert_close(sampled.probabilities[0, 4:10], torch.tensor([0, 1, 2, 3, 2, 1]) / 9)


def test_no_error_at_all_means_every_start():
    assert window_probabilities(window_errors(torch.zeros(9), 3, 2)).tolist() == pytest.approx([0.2] * 5)


def test_windows_are_what_the_paper_describes(fitted):
    windows = Windows(fitted.model, fitted.splits.test, fitted.scaling, fitted.config, torch.device("cpu"))
    states, contexts, actions, to_go, times, present = windows.window(torch.tensor([17, 20]))
    assert present.tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]
    assert (actions[0, :3] == PADDED_ACTION).all()
    assert (states[0, :3] == 0).all()
    assert (contexts[0, :3] == 0).all()
    assert times.tolist() == [[0, 0, 0, 17, 18, 19], [0, 1, 2, 3, 4, 5]]
    episode = fitted.splits.test.episodes[0]
    scale = fitted.assets["return_scale"]
    np.testing.assert_allclose(to_go[0, 3:, 0] * scale, np.cumsum(episode.rewards[::-1])[2::-1], rtol=1e-4)
    expected = (episode.observations[17] - fitted.assets["state_mean"]) / (fitted.assets["state_std"] + 1e-6)
    np.testing.assert_allclose(states[0, 3], expected, rtol=1e-4)


# -- policy -------------------------------------------------------------------------------------------------------


def _window(policy, batch=2, steps=5, padded=2):
    present = torch.ones(batch, steps)
    present[0, :padded] = 0
    return (
        torch.randn(batch, steps, 3), torch.randn(batch, steps, 4), torch.rand(batch, steps, 2),
        torch.randn(batch, steps, 1), torch.arange(steps).expand(batch, -1), present,
    )  # fmt: skip


@pytest.mark.parametrize("prompted", [False, True])
def test_cheap_actions_equal_all_actions(prompted):
    torch.manual_seed(0)
    policy = MetaDecisionTransformer(3, 2, 4, hidden=16, layers=2, heads=2, max_ep_len=9).eval()
    window = _window(policy)
    prompt = Prompt(torch.randn(2, 3, 3), torch.rand(2, 3, 2), torch.randn(2, 3, 1), torch.arange(3).expand(2, -1),
                    torch.ones(2, 3)) if prompted else None  # fmt: skip
    there = window[-1].bool()
    _, whole, _ = policy(*window, prompt)
    torch.testing.assert_close(policy.actions(*window, prompt)[there], whole[there])


def test_policy_sees_neither_the_future_nor_padding():
    torch.manual_seed(0)
    policy = MetaDecisionTransformer(3, 2, 4, hidden=16, layers=2, max_ep_len=9).eval()
    window = _window(policy)
    before = policy.actions(*window)
    later = [part.clone() for part in window]
    later[0][:, 4] += 5
    later[2][:, 3] += 5
    assert torch.allclose(policy.actions(*later)[1, :4], before[1, :4], atol=1e-6)
    assert not torch.allclose(policy.actions(*later)[1, 4], before[1, 4])
    padded = [part.clone() for part in window]
    padded[0][0, :2] += 5
    padded[2][0, :2] -= 9
    assert torch.allclose(policy.actions(*padded)[0, 2:], before[0, 2:], atol=1e-6)
    absent = Prompt(torch.randn(2, 3, 3), torch.rand(2, 3, 2), torch.randn(2, 3, 1), torch.arange(3).expand(2, -1),
                    torch.zeros(2, 3))  # fmt: skip
    there = window[-1].bool()
    assert torch.allclose(policy.actions(*window, absent)[there], before[there], atol=1e-6)


def test_bf16_autocast_trains():
    policy = MetaDecisionTransformer(3, 2, 4, hidden=16, layers=2, max_ep_len=9)
    window = _window(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        policy.actions(*window).float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


# -- official -----------------------------------------------------------------------------------------------------


def official():
    """State dicts with the official names, written out."""
    world, policy = WorldModel(3, 2, 16, 8), MetaDecisionTransformer(3, 2, 16, hidden=8, layers=2, max_ep_len=30)
    state = {k: v.clone() for k, v in policy.state_dict().items()}
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    names = {
        f"transformer.h.{layer}.{part}" for layer in range(2)
        for part in ("ln_1.weight", "attn.c_attn.weight", "attn.c_proj.bias", "mlp.c_fc.weight", "mlp.c_proj.weight")
    } | {"transformer.wte.weight", "prompt_embed_state.weight", "predict_action.0.weight", "embed_ln.bias"}  # fmt: skip
    assert names <= state.keys()
    return world, policy, state


def test_official_checkpoints(tmp_path):
    world, policy, state = official()
    parts = {"context_encoder": world.context_encoder.state_dict(), "reward_decoder": world.reward_decoder.state_dict()}
    (tmp_path / "official").mkdir()
    torch.save(parts, tmp_path / "official" / "context_models_best.pt")
    torch.save(state, tmp_path / "official" / "policy.pt")
    system = MetaDTSystem.from_official(tmp_path / "official")
    assert system.config.follow == "official"
    ours = MetaDT(world, policy).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in system.model.state_dict().items())
    same = MetaDTSystem.from_official({**parts, **state, "state_mean": torch.ones(3), "return_scale": 10.0})
    assert same.assets["return_scale"] == 10
    assert same.assets["state_mean"].tolist() == [1, 1, 1]
    system.save(tmp_path / "run")
    items = Trajectories.of({"0": episodes_of(transitions(), "x")})
    assert repertory.load(tmp_path / "run").embed(items).table.equals(system.embed(items).table)
    with pytest.raises(UserError, match="no policy"):
        MetaDTSystem.from_official(parts)
    with pytest.raises(UserError, match="no world model"):
        MetaDTSystem.from_official(state)


# -- readers ------------------------------------------------------------------------------------------------------


def _same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first.episodes, second.episodes, strict=True):
        for name in ("observations", "actions", "rewards", "next_observations"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)


def test_official_folder(tmp_path):
    for task, arrays in tasks(3).items():
        with open(tmp_path / f"dataset_task_{task}.pkl", "wb") as file:
            pickle.dump(arrays, file)
        parts = [{k: v[:12] for k, v in arrays.items()}, {k: v[12:24] for k, v in arrays.items()}]
        with open(tmp_path / f"dataset_task_prompt{task}.pkl", "wb") as file:
            pickle.dump(parts, file)
    (tmp_path / "task_info.json").write_text("{}")
    items = data.open(f"trajectories:{tmp_path}", "trajectories", MetaDTSystem.readers).all
    assert list(items.column("task")[::6]) == ["0", "1", "2"]
    assert list(items.ids[:2]) == ["0/0", "0/1"]
    prompts = data.open(f"trajectories:{tmp_path}?prompts=true", "trajectories", MetaDTSystem.readers).all
    assert len(prompts) == 6
    np.testing.assert_array_equal(prompts.episodes[1].rewards, items.episodes[1].rewards)

    class Bad:
        def __reduce__(self):
            return (print, ("executed",))

    with open(tmp_path / "dataset_task_0.pkl", "wb") as file:
        pickle.dump(Bad(), file)
    with pytest.raises(DataError, match="is not read"):
        data.open(f"trajectories:{tmp_path}", "trajectories", MetaDTSystem.readers)


def test_names_of_the_cheetah_direction_data():
    arrays = transitions()
    renamed = {"states": arrays["observations"], "next_states": arrays["next_observations"]}
    renamed |= {"dones": arrays["terminals"], "actions": arrays["actions"], "rewards": arrays["rewards"][:, None]}
    _same(Trajectories.wrap({"0": renamed}), Trajectories.wrap({"0": arrays}))


def test_files_of_transitions(tmp_path):
    whole = data.open(tasks(4), "trajectories").all
    paths = whole.write(tmp_path / "npz")
    assert [p.name for p in paths] == [f"dataset_task_{k}.npz" for k in range(4)]
    _same(data.open(f"trajectories:{tmp_path / 'npz'}").all, whole)
    _same(data.open(f"trajectories:{tmp_path / 'npz'}", "trajectories", MetaDTSystem.readers).all, whole)
    with pytest.raises(DataError, match="already"):
        whole.write(tmp_path / "npz")
    frame = pd.concat([
        pd.DataFrame({
            "task": f"t{task}", "episode": np.repeat(np.arange(6), 12), "observations": list(arrays["observations"]),
            "actions": list(arrays["actions"]), "rewards": arrays["rewards"],
            "next_obs": list(arrays["next_observations"]),
        })
        for task, arrays in tasks(4).items()
    ])  # fmt: skip
    frame.to_parquet(tmp_path / "all.parquet")
    read = data.open(f"trajectories:{tmp_path / 'all.parquet'}").all
    _same(read, whole)
    assert list(read.column("task")[::6]) == ["t0", "t1", "t2", "t3"]


def test_minari_in_and_out(tmp_path):
    import minari

    items = data.open(CHECK).all.take(np.arange(12))
    items.to_minari(tmp_path)
    read = data.open(f"trajectories:{tmp_path}").all
    _same(read, items)
    assert list(read.column("environment")) == list(items.column("environment"))
    one = data.open(f"trajectories:{tmp_path / 'goal-01'}").all
    assert set(one.column("task")) == {"goal-01"}
    opened = {name: minari.MinariDataset(tmp_path / name / "data") for name in ("goal-00", "goal-02")}
    assert len(data.open(opened, "trajectories").all) == 8
    assert len(data.open(f"trajectories:{tmp_path}?tasks=goal-00,goal-02").all) == 8
    with pytest.raises(DataError, match="did you mean 'goal-01'"):
        data.open(f"trajectories:{tmp_path}?tasks=gaol-01")
    with pytest.raises(DataError, match="already"):
        items.to_minari(tmp_path)


def test_splits_hold_out_whole_tasks(fitted):
    parts = [set(getattr(fitted.splits, part).column("task")) for part in ("train", "val", "test")]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert fitted.splits.rule == "group:task"


# -- acting -------------------------------------------------------------------------------------------------------


def test_act(fitted):
    made = fitted.act("repertory/PointRobot-v0", episodes=3, seed=1, task=0.7)
    assert made.num_rows == 60
    frame = made.to_pandas()
    assert frame.groupby("episode")["prompted"].first().tolist() == [False, True, True]
    assert np.isfinite(frame["error"]).all()
    goal = np.array([np.cos(0.7), np.sin(0.7)])
    first = frame[frame["episode"] == 0]
    positions = np.stack(first["observation"])
    np.testing.assert_allclose(positions[1:], positions[:-1] + np.stack(first["action"])[:-1], atol=1e-5)
    np.testing.assert_allclose(first["reward"][:-1], -np.linalg.norm(positions[1:] - goal, axis=1), atol=1e-5)
    assert fitted.act("repertory/PointRobot-v0", episodes=3, seed=1, task=0.7).equals(made)
    assert not fitted.act("repertory/PointRobot-v0", 1, 1, 2.0).equals(fitted.act("repertory/PointRobot-v0", 1, 1, 0.1))
    assert fitted.act("repertory/PointRobot-v0", 1, seed=5).equals(fitted.act("repertory/PointRobot-v0", 1, seed=5))


def test_acting_sees_what_training_sees(fitted):
    """The actor's contexts and actions are those of windows over the episode that it made."""
    played = fitted.play(fitted.splits.test, 1, 0)
    episode = next(iter(played.values()))[0].episode
    items = Trajectories.of({"0": [episode]})
    windows = Windows(fitted.model, items, fitted.scaling, fitted.config, torch.device("cpu"))
    row, horizon = torch.tensor([9]), fitted.config.horizon
    states, contexts, actions, _, times, present = windows.window(row)
    scale = fitted.assets["return_scale"]
    spent = np.cumsum(episode.rewards) - episode.rewards
    to_go = torch.from_numpy((fitted.assets["target_return"] - spent[9 : 9 + horizon]) / scale).float()[None, :, None]
    with torch.inference_mode():
        predicted = fitted.model.policy.actions(states, contexts, actions, to_go, times, present)[0, -1]
    low, high = -0.1, 0.1
    np.testing.assert_allclose(predicted.clamp(low, high), episode.actions[9 + horizon - 1], atol=1e-5)


def test_official_contexts_of_first_steps():
    paper = repertory.create("meta_dt", "tiny", **QUICK).fit(CHECK)
    like = MetaDTSystem(MetaDTSystem.Config.build("tiny", **QUICK, follow="official"))
    like.assets, like.model, like.record = paper.assets, paper.model, paper.record
    ours = paper.act("repertory/PointRobot-v0", 1, task=0.7).to_pandas()
    theirs = like.act("repertory/PointRobot-v0", 1, task=0.7).to_pandas()
    assert not np.allclose(np.stack(ours["action"]), np.stack(theirs["action"]))


def test_environments():
    from repertory.systems.meta_dt import environment

    robot = environment.make("repertory/PointRobot-v0?task=1.5")
    start, _ = robot.reset(seed=0)
    after, reward, _, _, _ = robot.step(np.array([0.1, 0.3]))
    np.testing.assert_allclose(after, start + 0.1)
    assert reward == pytest.approx(-np.hypot(*(np.array([np.cos(1.5), np.sin(1.5)]) - after)))
    with pytest.raises(UserError, match="did you mean 'repertory/PointRobot-v0'"):
        environment.make("repertory/PointRobot-v1")
    with pytest.raises(ConfigError, match="task_"):
        environment.make("repertory/PointRobot-v0?task_=1")
    with pytest.raises(UserError, match="vectors of numbers are needed"):
        environment.make("CartPole-v1")


def test_mujoco_tasks():
    from repertory.systems.meta_dt import environment

    action = 0.3 * np.ones(6)
    forwards, backwards = (environment.make(f"repertory/HalfCheetahDir-v0?task={way}") for way in (1, -1))
    totals = []
    for env in (forwards, backwards):
        env.reset(seed=0)
        totals.append(env.step(action))
    info = totals[0][4]
    assert totals[0][1] + totals[1][1] == pytest.approx(2 * info["reward_ctrl"])
    assert info["reward_ctrl"] == pytest.approx(-0.05 * np.square(action).sum())
    velocity = environment.make("repertory/HalfCheetahVel-v0?task=2.0")
    velocity.reset(seed=0)
    _, reward, _, _, info = velocity.step(action)
    assert reward == pytest.approx(info["reward_ctrl"] - abs(info["x_velocity"] - 2.0))
    masses = {}
    for task in (0, 3, 4):
        hopper = environment.make(f"repertory/HopperParams-v0?task={task}")
        masses[task] = hopper.unwrapped.model.body_mass.copy()
    assert not np.allclose(masses[0], masses[3])
    assert not np.allclose(masses[4], masses[3])
    items = environment.collect("repertory/HopperParams-v0", range(1, 13), episodes=2)
    config = {**QUICK, "decoder": "both", "context_horizon": 2, "prompt_length": 2}
    system = repertory.create("meta_dt", "tiny", **config).fit(items)
    metrics = system.evaluate()
    assert {"reward_error", "state_error", "zero_shot_return", "few_shot_return"} <= set(metrics)
    with pytest.raises(UserError, match="observations have shape"):
        system.act("repertory/PointRobot-v0")
    assert system.act("repertory/HopperParams-v0", 2, task=2).num_rows > 4


def test_unprompted_windows_leave_the_prompt_alone():
    prompted, never = (
        repertory.create("meta_dt", "tiny", **{**QUICK, "warm_train": 0, "weight_decay": 0.0, "unprompted": share})
        .fit(CHECK).model.policy.prompt_embed_state.weight
        for share in (0.0, 1.0)
    )  # fmt: skip
    untrained = repertory.create("meta_dt", "tiny", **{**QUICK, "warm_train": 9}).fit(CHECK).model.policy
    assert torch.equal(never, untrained.prompt_embed_state.weight)
    assert not torch.equal(prompted, never)


def test_ablations_and_decoders():
    for settings in ({"context": False}, {"prompt": "none"}, {"prompt": "random"}, {"decoder": "state"},
                     {"unprompted": 0.5}, {"follow": "official"}):  # fmt: skip
        system = repertory.create("meta_dt", "tiny", **{**QUICK, **settings}).fit(CHECK)
        metrics = system.evaluate()
        assert np.isfinite(metrics["few_shot_return"].value)
        if settings == {"context": False}:
            assert not system.embed().vectors.any()
        if settings == {"prompt": "none"}:
            assert not system.act("repertory/PointRobot-v0", 2, task=1.0)["prompted"].to_numpy().any()


def test_data_without_environment_are_evaluated_offline():
    metrics = repertory.create("meta_dt", "tiny", **QUICK).fit(tasks()).evaluate()
    assert "zero_shot_return" not in metrics
    assert metrics["action_error"].value > 0


# -- bad input ----------------------------------------------------------------------------------------------------


def _fit(source, **settings):
    return repertory.create("meta_dt", "tiny", **{**QUICK, **settings}).fit(source)


def test_bad_transitions():
    good = transitions()
    without = {k: v for k, v in good.items() if k != "next_observations"}
    with pytest.raises(DataError, match=r"no 'next_observations' \(also read: .*next_states"):
        data.open({"0": without}, "trajectories")
    with pytest.raises(DataError, match="from step 60 to 71, has no terminal"):
        data.open({"0": {**good, "terminals": np.append(good["terminals"][:-1], 0)}}, "trajectories")
    with pytest.raises(DataError, match="10 actions but 72 rewards"):
        data.open({"0": {**good, "actions": good["actions"][:10]}}, "trajectories")
    with pytest.raises(DataError, match="numbers are needed"):
        data.open({"0": {**good, "actions": good["actions"].astype(str)}}, "trajectories")
    spoiled = good["observations"].copy()
    spoiled[3, 1] = np.inf
    with pytest.raises(DataError, match=r"0/0: observations holds inf at \(3, 1\)"):
        data.open({"0": {**good, "observations": spoiled}}, "trajectories")
    with pytest.raises(DataError, match="observations have width 4"):
        data.open({**tasks(), "9": transitions(states=4)}, "trajectories")
    with pytest.raises(DataError, match="empty"):
        data.open({"0": {k: v[:0] for k, v in good.items()}}, "trajectories")
    with pytest.raises(DataError, match="holds no trajectories"):
        data.open(np.zeros((3, 3)), "trajectories")


def test_bad_fits(fitted):
    with pytest.raises(DataError, match=r"context and prompt need 8 .*prompt=none"):
        _fit(tasks(steps=7))
    assert _fit(tasks(steps=7), prompt="none").embed().width == 16
    large = {k: {**v, "actions": 2 * v["actions"]} for k, v in tasks().items()}
    with pytest.raises(DataError, match=r"the policy's lie in -1\.\.1"):
        _fit(large)
    with pytest.raises(ConfigError, match=r"max_ep_len=5: .* has 12 steps"):
        _fit(tasks(), max_ep_len=5)
    with pytest.raises(ConfigError, match="return_scale"):
        _fit(tasks(), return_scale=0.0)
    still = {k: {**v, "rewards": 0 * v["rewards"]} for k, v in tasks().items()}
    with pytest.raises(DataError, match="all returns are 0"):
        _fit(still)
    with pytest.raises(ConfigError, match="heads=3"):
        _fit(tasks(), heads=3)
    with pytest.raises(DataError, match="2 different 'task' cannot be divided"):
        _fit(tasks(2))
    with pytest.raises(DataError, match="observations have width 3; the model was fitted to 2"):
        fitted.embed(tasks())
    with pytest.raises(ConfigError, match="episodes=0"):
        fitted.act("repertory/PointRobot-v0", episodes=0)
    with pytest.raises(UserError, match="not fitted"):
        repertory.create("meta_dt", "tiny").act("repertory/PointRobot-v0")
