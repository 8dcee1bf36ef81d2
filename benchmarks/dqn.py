"""Actions a second of deep Q-learning on MinAtar's Breakout, beside a loop in PyTorch.

    pip install -e '.[play,benchmark]'
    python -m benchmarks.dqn [--rounds 20]

The twin is the loop that one would write: the game of the package MinAtar, one game, the same
network, memory, batch and optimizer, one update to four actions. Nobody sticks to an action, and
the game does not become harder, as in gymnax. Three things are timed, taking turns:

    acting      actions of the network, one of ten at random, and nothing kept
    learning    acting, remembering, and an update of 32 to four actions: the preset `small`
    8 seeds     the same of eight seeds at once, as one program over a device for each core; the
                twin has one
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import minatar
import numpy as np
import torch
from torch import nn

from benchmarks.step import spread
from experiments.dqn import PRESETS, build
from jaxhist import devices, tell
from jaxhist.algorithm import keys
from jaxhist.data import play
from jaxhist.models.dqn import MinAtar
from jaxhist.train import Run

CONFIG = PRESETS["small"]
SEEDS = 8
GAMES, ROUNDS = 256, 100  # side by side and one after the other, where nothing is learned

Play = Callable[[], int]  # plays, and says how many actions


class Twin:
    """One game, and all that is remembered of it."""

    def __init__(self, threads: int):
        self.threads = threads
        self.game = minatar.Environment(
            CONFIG.game, sticky_action_prob=0.0, difficulty_ramping=False
        )
        self.game.seed(0)
        self.choices = self.game.minimal_action_set()
        network = lambda: nn.Sequential(
            nn.Conv2d(4, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 128),
            nn.ReLU(),
            nn.Linear(128, len(self.choices)),
        )
        self.network, self.target = network(), network()
        self.target.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.RMSprop(
            self.network.parameters(), CONFIG.rate, alpha=0.95, eps=0.01 / 32, centered=True
        )
        size = CONFIG.memory
        self.seen = np.zeros((size, 4, 10, 10), bool)
        self.action, self.reward = np.zeros(size, np.int64), np.zeros(size, np.float32)
        self.over = np.zeros(size, bool)
        self.taken = self.updates = 0

    def look(self) -> np.ndarray:
        return self.game.state().transpose(2, 0, 1)

    def act(self, seen: np.ndarray) -> tuple[int, float, bool]:
        """One action, and what came of it."""
        if random.random() < 0.1:
            choice = random.randrange(len(self.choices))
        else:
            with torch.no_grad():
                value = self.network(torch.from_numpy(seen)[None].float())
            choice = int(value.argmax())
        reward, over = self.game.act(self.choices[choice])
        if over:
            self.game.reset()
        return choice, reward, over

    def acting(self, actions: int = 500) -> int:
        torch.set_num_threads(self.threads)
        for _ in range(actions):
            self.act(self.look())
        return actions

    def learning(self, actions: int = 400) -> int:
        torch.set_num_threads(self.threads)
        for _ in range(actions):
            place = self.taken % CONFIG.memory
            self.seen[place] = self.look()
            self.action[place], self.reward[place], self.over[place] = self.act(self.seen[place])
            self.taken += 1
            if self.taken % 4 == 0 and self.taken > 64:
                self.update()
        return actions

    def update(self):
        chosen = np.random.randint(0, min(self.taken, CONFIG.memory) - 1, 32)
        before, after = (
            torch.from_numpy(self.seen[places]).float() for places in (chosen, chosen + 1)
        )
        action, reward = (
            torch.from_numpy(self.action[chosen]),
            torch.from_numpy(self.reward[chosen]),
        )
        goes_on = 1 - torch.from_numpy(self.over[chosen]).float()
        with torch.no_grad():
            y = reward + 0.99 * goes_on * self.target(after).max(1).values
        value = self.network(before).gather(1, action[:, None])[:, 0]
        self.optimizer.zero_grad()
        nn.functional.huber_loss(value, y).backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % CONFIG.target_every == 0:
            self.target.load_state_dict(self.network.state_dict())


def acting() -> Play:
    game, key = play.named(CONFIG.game), jax.random.key(0)
    network = MinAtar(game.actions)
    games = jax.jit(lambda key: play.begin(game, key, GAMES))(key)
    params = network.init(key, play.seen(games.recent))["params"]
    player = play.sometimes_at_random(
        lambda seen: network.apply({"params": params}, seen), game.actions, 0.1
    )

    @jax.jit
    def rounds(games, key):
        def one(games, key):
            choose, chance = jax.random.split(key)
            action = player(play.seen(games.recent), choose)
            return play.advance(game, games, action, chance)[0], None

        return jax.lax.scan(one, games, jax.random.split(key, ROUNDS))[0]

    def run():
        nonlocal games, key
        key, used = jax.random.split(key)
        games = jax.block_until_ready(rounds(games, used))
        return GAMES * ROUNDS

    return run


def learning(seeds: int) -> Play:
    """The step of the experiment, as the trainer compiles it; several seeds are split over as many
    devices as there are cores, and vectorized on each."""
    experiment = build(replace(CONFIG, begin=100), Run(devices=1))
    mesh, key = devices.mesh(1 if seeds == 1 else 0), keys(0)
    batch = experiment.data(0, None)
    if seeds == 1:
        state = jax.jit(experiment.init, out_shardings=devices.whole(mesh))(key.init)
        step = experiment.step
    else:
        split = devices.split(mesh)
        init = jax.jit(jax.vmap(experiment.init), out_shardings=split)
        state = init(jax.random.split(key.init, seeds))
        batch = jax.tree.map(lambda x: jnp.stack([x + i for i in range(seeds)]), batch)
        batch = jax.device_put(batch, split)
        here = jax.shard_map(
            jax.vmap(experiment.step),
            mesh=mesh,
            in_specs=split.spec,
            out_specs=split.spec,
            check_vma=False,
        )
        step = lambda state, batch, key: here(state, batch, jax.random.split(key, seeds))
    step = jax.jit(step, donate_argnums=0).lower(state, batch, key.step).compile()
    count = 0

    def run():
        nonlocal state, count
        count += 1
        state, metrics = step(state, batch, jax.random.fold_in(key.step, count))
        jax.block_until_ready((state, metrics))
        return seeds * CONFIG.rounds * CONFIG.every

    run(), run()  # now it learns at each step
    return run


def rate(run: Play, seconds: float = 0.5) -> float:
    """Actions a second, of as many calls as fit."""
    start, actions = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        actions += run()
    return actions / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    threads = sorted({1, os.cpu_count()})
    twins = {f"torch, threads: {count}": Twin(count) for count in threads}
    runs = {
        "acting": {"jax": acting(), **{name: twin.acting for name, twin in twins.items()}},
        "learning": {"jax": learning(1), **{name: twin.learning for name, twin in twins.items()}},
        "8 seeds": {
            "jax": learning(SEEDS),
            **{name: twin.learning for name, twin in twins.items()},
        },
    }
    load = os.getloadavg()[0]
    result = {
        "command": f"python -m benchmarks.dqn {' '.join(sys.argv[1:])}".strip(),
        "date": time.strftime("%F"),
        "machine": {
            **devices.machine(devices.mesh(1)),
            **{name: version(name) for name in ("torch", "minatar", "gymnax")},
            "load_average_before": round(load, 2),
        },
    }
    for what, of_what in runs.items():
        for run in of_what.values():
            rate(run)
        rates = {name: [] for name in of_what}
        for _ in range(options.rounds):
            for name, run in of_what.items():
                rates[name].append(round(rate(run), 1))
        ratios = {
            f"jax / {name}": spread(list(np.divide(rates["jax"], rates[name])))
            for name in of_what
            if name != "jax"
        }
        per_second = {name: spread(values)["median"] for name, values in rates.items()}
        result[what] = {"actions_per_second": per_second, "ratio": ratios, "rates": rates}
        tell(json.dumps({what: {"actions_per_second": per_second, "ratio": ratios}}, indent=1))
    file = Path("results") / "benchmark-dqn.json"
    lines = ",\n".join(f' "{field}": {json.dumps(value)}' for field, value in result.items())
    file.write_text(f"{{\n{lines}\n}}\n")
    tell(f"written to {file}")


if __name__ == "__main__":
    main()
