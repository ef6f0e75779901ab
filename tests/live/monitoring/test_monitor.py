"""The monitor against the literal twin with every age, within its standard errors with few; what it cannot do it says."""

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import memoryless as ml
from memoryless.methods.method_optimizer import MethodOptimizer
from memoryless.report.watch import sentence
from tests.live.monitoring.monitored import LR, Training, criterion, monitor, noisy_model, plain_model


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=LR, betas=(0.8, 0.95))


def two_groups(parameters):
    first, *others = parameters
    groups = [{"params": [first], "weight_decay": 0.0}, {"params": others, "betas": (0.7, 0.9), "lr": 2 * LR}]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.95))


def cycled(optimizer):
    return OneCycleLR(optimizer, max_lr=2e-3, total_steps=30, base_momentum=0.7, max_momentum=0.9)


RUNS = {
    "adamw": lambda: Training(adamw),
    "adam, coupled decay": lambda: Training(lambda p: torch.optim.Adam(p, lr=LR, betas=(0.8, 0.95), weight_decay=0.1)),
    "adam, beta_1 = 0": lambda: Training(lambda p: torch.optim.Adam(p, lr=LR, betas=(0.0, 0.95))),
    "nadam": lambda: Training(lambda p: torch.optim.NAdam(p, lr=LR, betas=(0.8, 0.95))),
    "sgd": lambda: Training(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd, dampened": lambda: Training(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, dampening=0.5)),
    "rmsprop": lambda: Training(lambda p: torch.optim.RMSprop(p, lr=LR, alpha=0.9)),
    "rmsprop, centered": lambda: Training(lambda p: torch.optim.RMSprop(p, lr=LR, alpha=0.9, centered=True, eps=1e-3)),
    "lion": lambda: Training(lambda p: MethodOptimizer(p, ml.Lion(LR, (0.8, 0.9), 0.1, smoothing=0.1))),
    "two groups": lambda: Training(two_groups),
    "part of the model": lambda: Training(lambda p: adamw(list(p)[1:3])),  # what it does not hold gathers gradients
    "part, clipped": lambda: Training(lambda p: adamw(list(p)[1:3]), clip=0.3, clears_all=True),
    "betas and lr cycled": lambda: Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, 0.95)), schedule=cycled),
    "momentum cycled": lambda: Training(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9), schedule=cycled),
    "warm-up from 0": lambda: Training(adamw, schedule=lambda o: LambdaLR(o, lambda s: min(1.0, s / 10))),
    "clipped": lambda: Training(adamw, clip=0.3),
    "accumulated": lambda: Training(adamw, micro=3),
    "scaled": lambda: Training(adamw, scale=1024.0),
    "dropout, batch norm": lambda: Training(adamw, noisy_model),
    "dropout, accumulated": lambda: Training(adamw, noisy_model, micro=2),
}


@pytest.mark.parametrize("coordinates", [2**16, 20])
@pytest.mark.parametrize("name", RUNS)
def test_with_every_age_it_is_the_literal_effect(name, coordinates):
    training = RUNS[name]()
    clip = training.clipped if training.clip else None
    with monitor(training, coordinates=coordinates, gradient=clip) as watching:
        training.run(lambda batches: watching.step(batches))
    assert watching.notes == []
    assert [stop["step"] for stop in watching.stops] == [12, 24]
    for stop in watching.stops:
        (effect,) = stop["effects"]
        literal = training.literal(stop["step"], training.batches[0])
        assert effect["slope"] == pytest.approx(literal["slope"], rel=1e-6)
        assert effect["change"] == pytest.approx(literal["change"], rel=1e-5)
        assert effect["error"] < 1e-10 * effect["absolute"]
        assert sum(effect["layers"].values()) == pytest.approx(effect["slope"], rel=1e-6)


ALL_SORTS = ["adamw", "lion", "two groups", "betas and lr cycled", "clipped", "accumulated", "scaled", "dropout, batch norm"]


def state(training: Training) -> list:
    """All that a run leaves behind, to the last bit."""
    kept = [*training.net.state_dict().values(), *training.thetas]
    kept += [v for s in training.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    kept += [p.grad for p in training.net.parameters()]
    generators = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]  # type: ignore[index]
    return [*kept, *generators, torch.tensor(random.getstate()[1])]


@pytest.mark.parametrize("name", [*ALL_SORTS, "autocast"])
def test_the_run_is_bit_for_bit_the_plain_one(name):
    def training() -> Training:
        random.seed(1)
        np.random.seed(1)
        if name == "autocast":
            return Training(adamw, lambda: noisy_model().float(), autocast=True, steps=25)
        return RUNS[name]()

    if name == "autocast":
        torch.set_default_dtype(torch.float32)
    try:
        plain = state(training().run())
        watched = training()
        clip = watched.clipped if watched.clip else None
        betas = ((0.5, 0.9), (0.9, 0.99))
        with monitor(watched, gradient=clip, replays=5, data=None, betas=betas, shadows=[ml.Lion()]) as watching:
            watched.run(lambda batches: watching.step(batches))
        assert watching.stops
        assert all(torch.equal(a, b) for a, b in zip(plain, state(watched), strict=True))
        assert all(module.training for module in watched.net.modules())
        assert not watched.net._forward_pre_hooks
        assert not watched.optimizer._optimizer_step_pre_hooks
    finally:
        torch.set_default_dtype(torch.float64)


def test_autocast_is_replayed():
    torch.set_default_dtype(torch.float32)
    try:
        training = Training(adamw, plain_model, autocast=True, steps=25)
        with monitor(training) as watching:
            training.run(lambda batches: watching.step(batches))
    finally:
        torch.set_default_dtype(torch.float64)
    assert watching.stops[-1]["gradient_differs"] < 1e-6  # bfloat16 has digits to 4e-3: these are the same operations


def test_autocast_in_the_criterion_says_what_accuracy_is_left():
    def rounded(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return criterion(model, batch)

    torch.set_default_dtype(torch.float32)
    try:
        training = Training(adamw, plain_model, autocast=True, steps=25)
        watching = monitor(training)
        watching.criterion = rounded
        with watching:
            training.run(lambda batches: watching.step(batches))
    finally:
        torch.set_default_dtype(torch.float64)
    (effect,) = watching.stops[-1]["effects"]
    assert 1e-5 < effect["rounding"] < 0.1
    assert "autocast rounds the change by up to" in sentence(effect | {"error": 0.0}, 24)


def test_micro_batches_one_by_one_are_those_of_a_list():
    def training() -> Training:
        return Training(adamw, noisy_model, micro=2)

    together = training()
    with monitor(together) as one:
        together.run(lambda batches: one.step(batches))
    apart = training()
    with monitor(apart) as other:
        loss = apart.loss

        def told(batch):  # as soon as its loss is known, the optimizer's step being yet to come
            value = loss(batch)
            if batch is not apart.batches[other._watching.past.steps][-1]:
                other.step(batch)
            return value

        apart.loss = told  # type: ignore[method-assign]
        apart.run(lambda batches: other.step(batches[-1]))
    assert [s["effects"][0]["slope"] for s in one.stops] == [s["effects"][0]["slope"] for s in other.stops]


def test_a_skipped_step_takes_its_batch_with_it():
    """A loss scaler that met an infinity does not step: the next batch begins anew."""
    training = Training(adamw)
    skipped = (torch.full((6, 4), 7.0), torch.zeros(6, 1))
    with monitor(training) as watching:

        def tell(batches):
            watching.step(batches)
            training.optimizer.zero_grad()
            training.loss(skipped).backward()
            watching.step(skipped)

        training.run(tell)
    assert watching.notes == []
    literal = training.literal(24, training.batches[0])
    assert watching.stops[-1]["effects"][0]["slope"] == pytest.approx(literal["slope"], rel=1e-6)


def test_map_and_shadows_are_those_of_an_audited_run():
    others = [ml.HeavyBall(LR, 0.8), ml.Lion(LR, smoothing=0.1), ml.Lion(LR)]
    betas = ((0.5, 0.9), (0.9, 0.99))
    training = Training(adamw, steps=25)
    data = [batches[0] for batches in training.batches]
    with monitor(training, data=data, shadows=others, betas=betas) as watching:
        training.run(lambda batches: watching.step(batches))
    twin = Training(training.make, steps=25)
    loss = ml.Loss(twin.net, criterion, data, curvature="difference")
    run = ml.audit_run(
        twin.optimizer, loss, list(range(25)), stops=[12, 24], measures=["gradient_1_norm"], compare=others, betas=betas
    )
    for stop, audited in zip(watching.stops, run.stops, strict=True):
        slopes = [shadow["effects"][0]["slope"] for shadow in stop["shadows"]]
        assert slopes == pytest.approx([other.measured[0] for other in audited.others], rel=1e-6)
        (found,) = audited.maps
        assert np.array(stop["map"]["measures"]["gradient_1_norm"]["slope"]) == pytest.approx(found.change, rel=1e-6)
        assert stop["effects"][0]["change"] == pytest.approx(audited.audit.effects[0].measured, rel=1e-5)


def estimates(seeds: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """Slope and standard error of the live pair and of four cells, shape (seeds, 5) each."""
    rows = []
    for seed in range(seeds):
        training = Training(lambda p: torch.optim.Adam(p, lr=LR, betas=(0.9, 0.98)), steps=61)
        betas = ((0.5, 0.9), (0.9, 0.98))
        with monitor(training, every=[60], betas=betas, seed=seed, **options) as watching:
            training.run(lambda batches, watching=watching: watching.step(batches))
        (stop,) = watching.stops
        (cells,), (live,) = stop["map"]["measures"].values(), stop["effects"]
        rows.append([[live[key], *np.ravel(cells[key])] for key in ("slope", "error")])
    slopes, errors = np.array(rows).transpose(1, 0, 2)
    return slopes, errors


def test_with_few_ages_it_lies_within_its_standard_errors():
    exact, _ = estimates(1)
    slopes, errors = estimates(12, replays=24)
    t = (slopes - exact) / errors
    assert (np.abs(t) < 1.96).mean() > 0.85
    assert (np.abs(t.mean(0)) < 0.9).all()  # the mean of 12 that are independent: three of its own deviations
    assert (np.median(errors, axis=0) < np.abs(exact).max()).all()


SAID = {
    "clipped, and not said": (dict(clip=0.05), {}, "times as long: the loop scales or clips it"),
    "another loss": ({}, {"criterion": lambda model, batch: model(batch[0]).abs().mean()}, "must be the loss that is trained"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_measured_is_said_once(name, caplog):
    run, options, text = SAID[name]
    training = Training(adamw, **run)
    watching = monitor(training)
    watching.criterion = options.get("criterion", criterion)
    with caplog.at_level(logging.WARNING, "memoryless"), watching:
        training.run(lambda batches: watching.step(batches))
    assert len(caplog.records) == len(watching.notes) == 1
    assert text in watching.notes[0]
    assert watching.stops == []


def test_a_black_box_has_its_shadows_only():
    training = Training(lambda p: torch.optim.Adamax(p, lr=LR))
    with monitor(training, shadows=[ml.Adam(LR)]) as watching:
        training.run(lambda batches: watching.step(batches))
    assert "its own memory is not measured" in watching.notes[0]
    assert [stop["effects"] for stop in watching.stops] == [[], []]
    assert len(watching.stops[0]["shadows"][0]["effects"]) == 1


class Lookahead(torch.optim.Optimizer):
    """Holds an optimizer, and does something of its own: every other step goes back half of the way."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.count = optimizer, 0
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {"lr": LR})
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None) -> Any:
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            for p, slow in zip([p for group in self.param_groups for p in group["params"]], self.slow, strict=True):
                p.data.add_(slow).div_(2)
                slow.copy_(p.data)


def test_an_optimizer_around_another_is_itself():
    training = Training(lambda p: Lookahead(adamw(p)))
    with monitor(training, shadows=[ml.Adam(LR)]) as watching:
        training.run(lambda batches: watching.step(batches))
    assert "Lookahead is not recognised" in watching.notes[0]
    assert [stop["effects"] for stop in watching.stops] == [[], []]


def test_an_optimizer_whose_step_calls_no_hooks_is_refused():
    class Bare(Lookahead):
        def __init__(self, optimizer: torch.optim.Optimizer):
            self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

        def step(self, closure=None) -> Any:
            self.optimizer.step()

    training = Training(lambda p: Bare(adamw(p)))
    with pytest.raises(ml.errors.BadInput, match="Bare's step calls no hooks"):
        monitor(training)


def test_a_step_that_is_not_its_class_s_is_refused():
    training = Training(adamw)

    # Registered before the monitor's own: what a loop may do to parameters as part of its step.
    def shrink(*_: object) -> None:
        for p in training.net.parameters():
            p.data.mul_(0.999)

    training.optimizer.register_step_post_hook(shrink)
    with monitor(training) as watching:
        training.run(lambda batches: watching.step(batches))
    assert "the optimizer's step is not that of adamw" in watching.notes[0]
    assert watching.stops == []


def test_a_batch_written_to_is_refused():
    training = Training(adamw)
    with monitor(training, data=[(torch.ones(2, 4), torch.ones(2, 1))]) as watching:

        def tell(batches):
            watching.step(batches)
            batches[0][0].add_(1.0)

        training.run(tell)
    assert "written to after its step" in watching.notes[0]


def test_a_forgotten_batch_is_named():
    training = Training(adamw)
    taken = []
    with monitor(training) as watching:

        def tell(batches):
            taken.append(batches)
            if len(taken) != 6:
                watching.step(batches)

        training.run(tell)
    assert "step 5 was taken without monitor.step(batch)" in watching.notes[0]


def test_an_old_memory_is_waited_for():
    training = Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.5, 0.9)), steps=90)
    batches = training.batches
    training.batches = batches[:30]
    training.run()
    training.batches = batches[30:]
    with monitor(training, every=10) as watching:
        training.run(lambda batches: watching.step(batches))
    assert "of the optimizer's memory is older than what was watched" in watching.notes[0]
    first = watching.stops[0]
    assert first["step"] == 60  # .9^29 is below .05, and steps are the optimizer's
    assert 0 < first["unseen"] < 0.05


def test_what_is_behind_it_counts_from_where_watching_begins():
    """Made before 20 steps, watched after them: as one that is made then."""

    def stops(made_first: bool) -> list:
        training = Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.5, 0.7)), steps=37)
        batches, probe = training.batches, training.batches[0]
        watching = monitor(training, data=probe)
        training.batches = batches[:20]
        training.run()
        training.batches = batches[20:]
        with watching if made_first else monitor(training, data=probe) as watching:
            training.run(lambda batches: watching.step(batches))
        return [(stop["step"], stop["unseen"], stop["effects"]) for stop in watching.stops]

    assert stops(True) == stops(False)
    ((step, unseen, _),) = stops(True)  # at 24 more than a twentieth is older than what was watched
    assert step == 36
    assert unseen == pytest.approx(0.7**17)


def test_a_budget_pays_for_its_stops():
    training = Training(adamw)
    with monitor(training, every=None) as watching:
        training.run(lambda batches: watching.step(batches))
    assert watching.stops == []
    assert "no stop within 25 steps: a budget of 2%" in watching.notes[0]
    watching._account.began -= 1e6  # a run so long that a stop is cheap, and watching too
    assert watching._schedule.affords(1.0, 0.0, 1e6)
    assert not watching._schedule.affords(1.0, 2e4, 1e6)
    watching._require_light()
    assert len(watching.notes) == 1
    watching._account._spent += 1e5
    watching._sinks.note = lambda *_: None  # type: ignore[method-assign]
    watching._require_light()
    assert "watching takes 10% of these steps, stops not counted, and the budget is 2%" in watching.notes[1]


def test_a_batch_that_can_be_read_once_is_refused():
    training = Training(adamw)
    with monitor(training) as watching:
        training.run(lambda batches: watching.step(iter(batches[0])))
    assert "one-shot tuple_iterator" in watching.notes[0]


def test_an_optimizer_without_a_count_is_told_its_steps():
    training = Training(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5))
    batches = training.batches
    training.batches = batches[:9]
    training.run()
    training.batches = batches[9:]
    with monitor(training) as watching:
        assert "SGD does not count its steps" in watching.notes[0]
    with monitor(training, start=9) as watching:
        training.run(lambda batches: watching.step(batches))
    assert [stop["step"] for stop in watching.stops] == [24]  # at 12 half of half of a half is older than what was watched


def test_a_random_number_before_the_model_s_forward_pass_is_drawn_again():
    """A diffusion's loss, whose criterion says where it begins."""
    torch.manual_seed(0)
    net = plain_model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.8, 0.95))

    def noisy(model, batch):
        watching.begin()
        return criterion(model, (batch[0] + 0.5 * torch.randn_like(batch[0]), batch[1]))

    watching = ml.Monitor(net, noisy, optimizer, every=12, betas=None)
    with watching:
        for _ in range(13):
            batch = torch.randn(6, 4), torch.randn(6, 1)
            optimizer.zero_grad()
            noisy(net, batch).backward()
            optimizer.step()
            watching.step(batch)
    assert watching.notes == []
    assert watching.stops[0]["gradient_differs"] < 1e-12


def test_gradients_from_a_closure_are_seen():
    def train(watched: bool) -> tuple[list, list]:
        training = Training(adamw)
        watching = monitor(training) if watched else None
        if watching:
            watching.__enter__()
        for (batch,) in training.batches:

            def closure(batch=batch):
                training.optimizer.zero_grad()
                loss = training.loss(batch)
                loss.backward()
                return loss

            training.optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
            if watching:
                watching.step(batch)
        if watching:
            watching.close()
        return [p.detach() for p in training.net.parameters()], watching.stops if watching else []

    (watched, stops), (plain, _) = train(True), train(False)
    assert [stop["step"] for stop in stops] == [12, 24]
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))


WRONG = {
    "model": (dict(model="net"), "Monitor takes model, criterion(model, batch), optimizer"),
    "optimizer of another model": (
        dict(optimizer=torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)),
        "holds none of the model's trainable parameters",
    ),
    "budget": (dict(budget=1.5), "budget must be a share of the wall time in (0, 1), got 1.5"),
    "every": (dict(every=0), "every must be at least 1 step"),
    "every, text": (dict(every="10"), "every must be a number of steps"),
    "coordinates": (dict(coordinates=0), "coordinates must be a whole number, at least 1"),
    "replays": (dict(replays=1), "replays must be a whole number, at least 2"),
    "start": (dict(start=-1), "start must be a whole number, at least 0"),
    "measures": (dict(measures="sharpness"), "measures must be a sequence"),
    "betas, one pair": (dict(betas=(0.9, 0.999)), "betas must be the two axes of the map, such as ([0.8, 0.9], [0.99, 0.999])"),
    "betas, one axis": (dict(betas=[(0.9, 0.99)]), "betas must be the two axes of the map"),
    "betas, a number": (dict(betas=0.9), "betas must be the two axes of the map"),
    "betas, text": (dict(betas=("0.9", "0.99")), "betas must be the two axes of the map"),
    "log": (dict(log=7), "log must be a path, something with .log(dict, step=)"),
    "log, no folder": (dict(log="/nowhere/at/all.jsonl"), "cannot be written"),
    "shadow": (dict(shadows=[ml.LionK(K=lambda c: c.norm())]), "acts on each by itself"),
    "half": (dict(model=nn.Linear(2, 1).half()), "float16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(name):
    options, text = WRONG[name]
    model = options.get("model", nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if isinstance(model, nn.Module) else None
    arguments = {"model": model, "criterion": criterion, "optimizer": optimizer} | options
    with pytest.raises(ml.errors.BadInput) as error:
        ml.Monitor(**arguments)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_step_outside_of_with_is_refused():
    training = Training(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9))
    with pytest.raises(ml.errors.BadInput, match="not watching"):
        monitor(training).step(training.batches[0])


def test_a_map_of_a_part_of_the_model_is_that_of_the_live_pair_there():
    training = Training(lambda p: adamw(list(p)[1:3]))
    betas = ((0.5, 0.8), (0.9, 0.95))
    with monitor(training, replays=6, betas=betas, shadows=[ml.Adam(LR, betas=(0.8, 0.95))]) as watching:
        training.run(lambda batches: watching.step(batches))
    assert watching.notes == []
    for stop in watching.stops:
        (found,), (live,), (shadow,) = stop["map"]["measures"].values(), stop["effects"], stop["shadows"]
        assert np.isfinite(found["error"]).all()
        assert found["slope"][1][1] == pytest.approx(live["slope"], rel=1e-6)
        assert shadow["effects"][0]["slope"] == pytest.approx(live["slope"], rel=1e-6)  # Adam: decay is the present theta's


@pytest.mark.parametrize("name", ["adamw", "two groups", "betas and lr cycled", "momentum cycled", "lion", "clipped"])
def test_sums_kept_whole_are_those_of_kept_gradients(name, monkeypatch):
    """With few ages: the same draws, once as sums over all coordinates and once from the gradients themselves."""
    monkeypatch.setattr("memoryless.live.monitoring.frozen._bias", lambda *_: 0.0)  # a sample corrects its own part only
    monkeypatch.setattr("memoryless.live.monitoring.frozen._displaced", lambda *a: (0.0, np.zeros((16, 1))))
    found = []
    for coordinates in (2**16, 20):
        training = RUNS[name]()
        clip = training.clipped if training.clip else None
        with monitor(training, coordinates=coordinates, gradient=clip, replays=6) as watching:
            training.run(lambda batches, watching=watching: watching.step(batches))
        assert watching.notes == []
        found.append([(stop["effects"][0]["slope"], stop["effects"][0]["change"]) for stop in watching.stops])
    assert np.array(found[1]) == pytest.approx(np.array(found[0]), rel=1e-8)
