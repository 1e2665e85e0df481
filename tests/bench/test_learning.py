"""The data, the training and the attacks of the learning benchmark, and two rounds on a chain."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import WEIGHT_TOTAL
from steelyard.chain.rules import Flag
from steelyard.chain.shares import compute_shares
from steelyard.chain.types import Address

from .learning import mnist
from .learning.attacks import Attack, attack, flip_labels
from .learning.data import (
    FEWEST_DIGITS,
    Rows,
    join_rows,
    read_idx,
    split_digits,
    split_heart,
)
from .learning.draws import compute_capture
from .learning.scenes import HEART_RECIPE, SCENES, learn, train_sites
from .learning.servers import RULES, ExactServer, FloatServer, make_deal
from .learning.training import (
    Recipe,
    build_arrays,
    compute_layers,
    compute_softmax,
    score,
    step,
    train,
)

SEED = 1


def make_addresses(count: int) -> list[Address]:
    return [Address(bytes([1 + place]) * 20) for place in range(count)]


def sort_rows(rows: Rows) -> np.ndarray:
    """The rows, labels among the features, in an order that does not depend on theirs."""
    table = np.column_stack([rows.features, rows.labels])
    return table[np.lexsort(table.T)]


# -- data ------------------------------------------------------------------------------------------
def test_the_fifth_site_holds_a_fifth_of_the_patients() -> None:
    split = split_heart(SEED)
    sizes = [len(site) for site in split.sites]
    assert len(sizes) == 5
    assert sum(sizes) + len(split.test) == 920
    assert sizes[-1] == pytest.approx(sum(sizes) / 5, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [None, 0.3])
def test_every_digit_is_dealt_to_one_site(concentration: float | None) -> None:
    split = split_digits(20, SEED, concentration)
    everything = split_digits(1, SEED)
    assert sum(len(site) for site in split.sites) + len(split.test) == 1_797
    assert min(len(site) for site in split.sites) >= FEWEST_DIGITS
    dealt = np.concatenate([sort_rows(site) for site in (*split.sites, split.test)])
    whole = np.concatenate([sort_rows(site) for site in (*everything.sites, everything.test)])
    assert np.array_equal(dealt[np.lexsort(dealt.T)], whole[np.lexsort(whole.T)])


def test_a_split_depends_on_its_seed_only() -> None:
    first, again, other = (split_digits(20, seed, 0.3) for seed in (1, 1, 2))
    assert all(
        np.array_equal(a.features, b.features)
        for a, b in zip(first.sites, again.sites, strict=True)
    )
    assert [len(site) for site in first.sites] != [len(site) for site in other.sites]


# -- training --------------------------------------------------------------------------------------
def compute_loss(recipe: Recipe, arrays: dict[str, np.ndarray], rows: Rows) -> float:
    chances = compute_softmax(compute_layers(recipe, arrays, rows.features)[-1])
    return float(-np.log(chances[np.arange(len(rows)), rows.labels]).mean())


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_a_step_goes_down_the_gradient(hidden: tuple[int, ...]) -> None:
    recipe = Recipe(4, 3, hidden=hidden, epochs=1, batch=8, rate=1.0)
    generator = np.random.default_rng(3)
    rows = Rows(generator.normal(size=(8, 4)), generator.integers(0, 3, 8))  # in float64
    base = {name: array.astype(np.float64) for name, array in build_arrays(recipe, 1).items()}
    moved = {name: array.copy() for name, array in base.items()}
    step(recipe, moved, rows)
    for name, array in base.items():
        for place in np.ndindex(array.shape):
            losses = []
            for shift in (1e-6, -1e-6):
                array[place] += shift
                losses.append(compute_loss(recipe, base, rows))
                array[place] -= shift
            slope = (losses[0] - losses[1]) / 2e-6
            assert base[name][place] - moved[name][place] == pytest.approx(slope, abs=1e-6)


def test_training_learns_and_repeats() -> None:
    split = split_heart(SEED)
    first = build_arrays(HEART_RECIPE, SEED)
    trained = train(HEART_RECIPE, first, split.sites[0], [SEED])
    again = train(HEART_RECIPE, first, split.sites[0], [SEED])
    assert all(np.array_equal(trained[name], again[name]) for name in first)
    assert score(HEART_RECIPE, trained, split.test) > 0.65 > score(HEART_RECIPE, first, split.test)


# -- attacks ---------------------------------------------------------------------------------------
def run_attack(kind: Attack) -> list[dict[str, np.ndarray]]:
    split = split_heart(SEED)
    first = build_arrays(HEART_RECIPE, SEED)
    return attack(kind, HEART_RECIPE, first, split.sites[:3], [[SEED, place] for place in range(3)])


def test_a_sign_flip_takes_back_four_times_what_was_learnt() -> None:
    honest, flipped = run_attack(Attack.NONE), run_attack(Attack.SIGN_FLIP)
    for one, other in zip(honest, flipped, strict=True):
        assert all(np.array_equal(other[name], -4 * one[name]) for name in one)


def test_a_label_flip_teaches_the_opposite() -> None:
    rows = split_digits(20, SEED).sites[0]
    flipped = flip_labels(rows, 10)
    assert (flipped.labels + rows.labels == 9).all()
    assert np.array_equal(flipped.features, rows.features)
    honest, taught = run_attack(Attack.NONE)[0], run_attack(Attack.LABEL_FLIP)[0]
    assert float((honest["weight1"] * taught["weight1"]).sum()) < 0


def test_attackers_inside_the_crowd_agree_and_stay_within_its_spread() -> None:
    honest, inside = run_attack(Attack.NONE), run_attack(Attack.INSIDE)
    for name in honest[0]:
        values = np.stack([delta[name] for delta in honest])
        assert all(np.array_equal(a[name], b[name]) for a, b in pairwise(inside))
        off = np.abs(inside[0][name] - values.mean(axis=0))
        assert np.allclose(off, 1.5 * values.std(axis=0), atol=1e-6)


def test_other_files_than_idx_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(b"\x00\x00\x08\x01" + (3).to_bytes(4, "big") + b"\x01\x02\x09")
    assert read_idx(path, 2049, 1).tolist() == [1, 2, 9]
    for data in (b"", b"\x00\x00\x08", b"\x00\x00\x08\x03" + bytes(12)):
        path.write_bytes(data)
        with pytest.raises(SteelyardError, match="IDX"):
            read_idx(path, 2049, 1)


# -- servers ---------------------------------------------------------------------------------------
def test_the_exact_mean_is_the_float_mean_but_for_the_quantization() -> None:
    split = split_heart(SEED)
    weights = [len(site) for site in split.sites]
    first = build_arrays(HEART_RECIPE, SEED)
    exact = ExactServer(first, make_deal("fedavg", 0, 0.0, weights), make_addresses(5))
    floats = FloatServer(first, weights)
    deltas = train_sites(HEART_RECIPE, first, split, [SEED, 1])
    exact.play(dict(enumerate(deltas)))
    floats.play(dict(enumerate(deltas)))
    largest = max(float(np.abs(delta[name]).max()) for delta in deltas for name in first)
    for name, array in floats.arrays.items():
        assert np.allclose(exact.arrays[name], array, atol=largest / 64)
        assert not np.array_equal(exact.arrays[name], array)


@pytest.mark.parametrize("rule", RULES)
def test_a_sign_flip_ruins_the_mean_and_no_robust_rule(rule: str) -> None:
    scene = SCENES["heart"]
    split, threat = scene.split(SEED), scene.threats[1]
    deal = make_deal(rule, threat.told, scene.norm, [len(site) for site in split.sites])
    server = ExactServer(build_arrays(scene.recipe, SEED), deal, make_addresses(5))
    *_, accuracy = learn(scene, threat, split, server, SEED, 3)
    assert (accuracy > 0.6) == (rule != "fedavg")
    assert (server.flags[-1][-1] == Flag.EXCLUDED | Flag.ZERO_SHARE) == (rule == "multi_krum")


# -- what splitting an identity gains (docs/economics.md) ------------------------------------------
def split_attacker(weights: list[int], parts: int) -> float:
    """The attacker's part of the shares when its rows, the last ones, come from many accounts."""
    rows = weights[-1]
    own = [rows // parts + (place < rows % parts) for place in range(parts)]
    names = [compute_blob_name(bytes([place])) for place in range(len(weights) - 1 + parts)]
    shares = compute_shares(names, [*weights[:-1], *own])
    return sum(shares[-parts:]) / WEIGHT_TOTAL


@pytest.mark.parametrize("parts", [2, 7, 40])
def test_rows_over_many_accounts_gain_at_most_a_unit_each(parts: int) -> None:
    weights = [301, 298, 203, 120, 211]
    fair = weights[-1] / sum(weights)
    assert abs(split_attacker(weights, 1) - fair) < 1 / WEIGHT_TOTAL
    assert abs(split_attacker(weights, parts) - fair) < parts / WEIGHT_TOTAL


def test_uniform_weighting_pays_for_every_account() -> None:
    names = [compute_blob_name(bytes([place])) for place in range(8)]
    shares = compute_shares(names, [1] * 8)
    assert sum(shares[-4:]) / WEIGHT_TOTAL == 0.5  # one of five, with four accounts


def test_the_chance_of_a_captured_draw_is_that_of_all_draws_counted() -> None:
    captured = [draw for draw in combinations(range(7), 3) if sum(seat < 4 for seat in draw) > 1]
    chance = len(captured) / len(list(combinations(range(7), 3)))
    assert compute_capture(7, 3, 4, 1, 1) == pytest.approx(chance)
    assert compute_capture(7, 3, 4, 1, 3) == pytest.approx(1 - (1 - chance) ** 3)


# -- the chain -------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_rounds_on_a_chain_make_the_same_bits_and_pay_the_shares() -> None:
    from .learning.chain import ChainServer, run_validator

    scene = SCENES["heart"]
    split, threat = scene.split(SEED), scene.threats[1]
    deal = make_deal("multi_krum", threat.told, 0.0, [len(site) for site in split.sites])
    first = build_arrays(scene.recipe, SEED)
    with run_validator(len(split.sites)) as node:
        server = ChainServer(node, first, deal, 2)
        told = list(learn(scene, threat, split, server, SEED, 2))
        pay = server.get_pay()
    exact = ExactServer(first, deal, server.addresses)
    assert list(learn(scene, threat, split, exact, SEED, 2)) == told
    assert exact.model == server.model
    for played, shares, flags in zip(server.rounds, exact.shares, exact.flags, strict=True):
        assert tuple(played.shares[who] for who in server.addresses) == shares
        assert tuple(played.flags[who] for who in server.addresses) == flags
    assert pay == [
        sum(played.pool * played.shares[who] // WEIGHT_TOTAL for played in server.rounds)
        for who in server.addresses
    ]
    assert pay[-1] == 0, "the attacker was left out twice"


@pytest.mark.slow
def test_a_round_of_those_whom_the_chain_draws() -> None:
    from .learning.chain import ChainServer, run_validator

    split = split_heart(SEED)
    weights = [len(site) for site in split.sites]
    first = build_arrays(HEART_RECIPE, SEED)
    with run_validator(5) as node:
        server = ChainServer(node, first, make_deal("fedavg", 0, 0.0, weights, 2), 2)
        deltas = train_sites(HEART_RECIPE, first, split, [SEED, 1])
        drawn = server.get_drawn()
        server.play({place: deltas[place] for place in drawn})
    (played,) = server.rounds
    assert len(drawn) == 2
    assert set(played.shares) == {server.addresses[place] for place in drawn}


def write_digits(directory: Path, part: str, count: int) -> None:
    """Write images like MNIST's: a bright bar where the label says, on noise."""
    generator = np.random.default_rng([SEED, count])
    labels = np.arange(count, dtype=np.uint8) % 10
    images = generator.integers(0, 64, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] = 255
    for name, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
        header = np.array([magic, *array.shape], ">u4").tobytes()
        (directory / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())


def test_the_hundred_sites_hold_every_training_image_once(tmp_path: Path) -> None:
    write_digits(tmp_path, "train", 250)
    write_digits(tmp_path, "t10k", 20)
    split = mnist.split_mnist(tmp_path, SEED)
    assert sorted(map(len, split.sites)) == [2] * 50 + [3] * 50
    assert (len(split.test), split.classes) == (20, 10)
    dealt = sort_rows(join_rows(list(split.sites)))
    assert np.array_equal(dealt, sort_rows(mnist.read_rows(tmp_path, "train")))
    assert (dealt.min(), dealt[:, :-1].max()) == (0.0, 1.0)


@pytest.mark.slow
def test_ten_of_a_hundred_reach_the_target_on_a_chain_and_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, "train", 400)
    write_digits(tmp_path, "t10k", 100)
    monkeypatch.setattr(mnist, "TARGET", 0.9)
    on_chain, in_float = mnist.reach_mnist(tmp_path, SEED, 4)
    assert 1 < on_chain <= 4
    assert abs(on_chain - in_float) <= 1


@pytest.mark.slow
def test_a_free_rider_is_paid_its_accepted_weight_and_no_more() -> None:
    from .learning.riders import Rider, ride

    result = ride(Rider.FREE_RIDER, "fedavg", SEED, 2)
    assert 0 < result.weight_share < 1
    assert result.share <= result.weight_share + 1 / WEIGHT_TOTAL
