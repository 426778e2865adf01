"""Every policy: budgets hold, each sample leaves, scores look at no later exit, files come back."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_exits import dense, synthetic

import eenet_jax
from eenet_jax.errors import InputError
from eenet_jax.policies.choice import MEASURE_OF_BASELINE
from eenet_jax.policies.eenet import EENet
from eenet_jax.policies.fit import BASELINES, POLICY_NAMES, setting_names
from eenet_jax.scheduler.features import num_features
from eenet_jax.types import ExitPredictions

COSTS = (1.0, 2.5, 4.0)
BUDGETS = [1.0, 1.7, 2.5, 3.9, 4.0]
QUICK = {
    "eenet": {"folds": 2, "prices": 16, "sweeps": 2},
    "eenet_paper": {"epochs": 40, "restarts": 2},
}


@pytest.fixture(scope="module")
def predictions():
    return synthetic()


@pytest.fixture(scope="module")
def fitted(predictions):
    # The setting of every test, so that what is compiled here is compiled once.
    with jax.numpy_rank_promotion("raise"):
        return {
            name: eenet_jax.fit(predictions, COSTS, BUDGETS, policy=name, **QUICK.get(name, {}))
            for name in POLICY_NAMES
        }


def _realised(policy, predictions, costs=COSTS):
    exits = policy.decide(predictions.probs, predictions.measures)
    right = predictions.correctness()[exits, np.arange(len(exits))]
    rates = np.bincount(exits, minlength=len(costs)) / len(exits)
    return right.mean(), float((rates * np.asarray(costs)).sum())


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_budget_holds_on_realised_validation_cost(fitted, predictions, name):
    for budget, policy in zip(BUDGETS, fitted[name], strict=True):
        accuracy, cost = _realised(policy, predictions)
        assert policy.budget == budget
        assert cost <= budget
        assert policy.info["validation_cost"] == cost
        assert policy.info["validation_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("name", ["max_prob", "entropy", "eenet"])
def test_policies_of_continuous_scores_use_the_budget_up(fitted, name):
    for policy in fitted[name]:
        # Near the full cost `eenet` may keep what buys nothing.
        if name != "eenet" or policy.budget < 3:
            assert policy.info["validation_cost"] >= policy.budget - 0.05


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_row_k_of_scores_is_score_k_to_the_bit_and_sees_no_later_exit(fitted, predictions, name):
    policy, probs = fitted[name][2], predictions.probs
    scores = policy.scores(probs)
    assert scores.shape == probs.shape[:2]
    other = synthetic(seed=5).probs
    for k in range(3):
        np.testing.assert_array_equal(scores[k], policy.score(k, probs[: k + 1]))
        mixed = np.concatenate([probs[: k + 1], other[k + 1 :]])
        np.testing.assert_array_equal(scores[k], policy.scores(mixed)[k])
    traced = jax.jit(lambda some: policy.score(1, some))(probs[:2])
    np.testing.assert_array_equal(traced, scores[1])


@pytest.mark.parametrize("name", ["entropy", "eenet_paper"])
def test_no_batch_size_changes_a_bit_of_a_score(fitted, predictions, name):
    policy, probs = fitted[name][2], predictions.probs
    wanted = policy.score(1, probs[:2])
    traced = jax.jit(policy.score, static_argnums=0)
    for size in (1, 7, 16):
        np.testing.assert_array_equal(traced(1, probs[:2, :size]), wanted[:size])


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_saved_policy_comes_back_the_same(fitted, predictions, name, tmp_path):
    policy = fitted[name][1]
    policy.save(tmp_path / "policy.json")
    again = eenet_jax.load_policy(tmp_path / "policy.json")
    assert type(again) is type(policy)
    assert (again.budget, again.costs, again.unit) == (policy.budget, policy.costs, policy.unit)
    assert dict(again.info) == dict(policy.info)
    np.testing.assert_array_equal(again.thresholds, policy.thresholds)
    scores = policy.scores(predictions.probs)
    np.testing.assert_array_equal(again.scores(predictions.probs), scores)


def test_infinite_thresholds_are_strings(fitted, tmp_path):
    fitted["static"][2].save(tmp_path / "policy.json")
    document = json.loads((tmp_path / "policy.json").read_text())
    assert document["thresholds"] == ["inf", "-inf", "-inf"]
    assert document["policy"] == "static"


def _large(fitted):
    weights = np.random.default_rng(0).normal(size=(3, 2008)).astype(np.float32)
    known = fitted["eenet_paper"][0]
    fields = {"budget": 2.0, "thresholds": known.thresholds, "costs": COSTS}
    return type(known)(weights=weights, **fields)


def test_large_arrays_lie_beside_in_safetensors(fitted, tmp_path):
    policy = _large(fitted)
    policy.save(tmp_path / "eenet_paper-2.0.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "eenet_paper-2.0.json",
        "eenet_paper-2.0.safetensors",
    ]
    again = eenet_jax.load_policy(tmp_path / "eenet_paper-2.0.json")
    np.testing.assert_array_equal(again.weights, policy.weights)


def _damage(document, how):
    return {
        "format": document | {"format": "other"},
        "policy": document | {"policy": "nobody"},
        "thresholds": document | {"thresholds": ["inf"]},
        "not a number": document | {"thresholds": ["nan", 0.5, "-inf"]},
        "words": document | {"thresholds": ["many", 0.5, "-inf"]},
        "weights": document | {"now": [[1.0], [2.0]]},
        "budget": {key: value for key, value in document.items() if key != "budget"},
        "no dict": [1, 2],
        "arrays": document | {"arrays": {"file": "gone.safetensors", "names": ["weights"]}},
    }[how]


@pytest.mark.parametrize(
    "how",
    ["format", "policy", "thresholds", "not a number", "words", "weights", "budget", "no dict",
     "arrays"],
)  # fmt: skip
def test_damaged_policy_files_are_one_line_errors(fitted, tmp_path, how):
    path = tmp_path / "policy.json"
    fitted["eenet"][1].save(path)
    path.write_text(json.dumps(_damage(json.loads(path.read_text()), how)))
    with pytest.raises(InputError, match=r"policy\.json"):
        eenet_jax.load_policy(path)


def test_truncated_and_missing_files_are_one_line_errors(fitted, tmp_path):
    path = tmp_path / "policy.json"
    with pytest.raises(InputError, match="check the path"):
        eenet_jax.load_policy(path)
    _large(fitted).save(path)
    beside = tmp_path / "policy.safetensors"
    beside.write_bytes(beside.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        eenet_jax.load_policy(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="policy"):
        eenet_jax.load_policy(path)


def test_static_takes_the_best_exit_that_the_budget_pays_for(fitted):
    assert fitted["static"][1].thresholds.tolist() == [-np.inf] * 3
    assert fitted["static"][3].thresholds.tolist() == [np.inf, -np.inf, -np.inf]


def test_patience_has_one_integer_for_all_exits(fitted):
    for policy in fitted["patience"]:
        early = set(policy.thresholds[:-1].tolist())
        assert early <= {2.0, 3.0} or set(policy.thresholds.tolist()) <= {np.inf, -np.inf}


def test_eenet_is_never_worse_than_max_prob_on_fresh_samples(fitted):
    fresh = synthetic(samples=400, seed=11)
    for ours, theirs in zip(fitted["eenet"], fitted["max_prob"], strict=True):
        picked = [policy.decide(fresh.probs) for policy in (ours, theirs)]
        right = [fresh.correctness()[exits, np.arange(400)] for exits in picked]
        gap = right[0] - right[1]
        assert gap.mean() >= -1.96 * gap.std() / 20 - 1e-9


def test_the_same_seed_gives_the_same_policy(predictions, fitted):
    again = eenet_jax.fit(predictions, COSTS, BUDGETS, policy="eenet_paper", **QUICK["eenet_paper"])
    np.testing.assert_array_equal(again[2].weights, fitted["eenet_paper"][2].weights)


def test_softmax_exit_distributions_hold_budgets_too(predictions):
    some = eenet_jax.fit(
        predictions, COSTS, BUDGETS, policy="eenet_paper", exit_distribution="softmax",
        **QUICK["eenet_paper"],
    )  # fmt: skip
    for budget, policy in zip(BUDGETS, some, strict=True):
        assert _realised(policy, predictions)[1] <= budget


@pytest.mark.parametrize("name", ["eenet", "eenet_paper", "max_prob", "patience"])
def test_dense_prediction_scores_by_the_given_measures(name):
    some = dense(samples=200)
    quick = QUICK.get(name, {})
    for policy in eenet_jax.fit(some, COSTS, BUDGETS, policy=name, **quick):
        accuracy, cost = _realised(policy, some)
        assert cost <= policy.budget
        assert policy.info["validation_accuracy"] == pytest.approx(accuracy, rel=1e-5)
    if name == "max_prob":
        np.testing.assert_array_equal(
            policy.scores(some.probs, some.measures), some.measures[..., 0]
        )


def _hostile(kind):
    exits, samples, classes = 3, 200, 4
    random = np.random.default_rng(0)
    probs = random.dirichlet(np.ones(classes), (exits, samples)).astype(np.float32)
    labels = random.integers(0, classes, samples)
    certain = np.eye(classes, dtype=np.float32)
    if kind == "one class only":
        labels = np.zeros(samples, int)
    elif kind == "all exits equal":
        probs = np.repeat(probs[:1], exits, axis=0)
    elif kind == "certain and right":
        probs = np.repeat(certain[labels][None], exits, axis=0)
    elif kind == "certain and wrong":
        probs = np.repeat(certain[(labels + 1) % classes][None], exits, axis=0)
    elif kind == "ties everywhere":
        probs = np.full_like(probs, 1 / classes)
    elif kind == "best exit first":
        probs = np.stack([certain[labels], *probs[1:]])
    elif kind == "one exit worse than before":
        probs = np.stack([probs[0], certain[labels], probs[2]])
    elif kind == "exactly 0 and 1":
        said = np.where(random.random((exits, samples)) < 0.6, labels[None], 0)
        probs = certain[said]
    return ExitPredictions(probs=probs, labels=labels)


@pytest.mark.parametrize(
    "kind",
    ["one class only", "all exits equal", "certain and right", "certain and wrong",
     "ties everywhere", "best exit first", "one exit worse than before", "exactly 0 and 1"],
)  # fmt: skip
def test_hostile_predictions_hold_budgets_and_every_sample_leaves(kind):
    some = _hostile(kind)
    for name in POLICY_NAMES:
        for policy in eenet_jax.fit(some, COSTS, BUDGETS, policy=name, **QUICK.get(name, {})):
            exits = policy.decide(some.probs)
            assert ((exits >= 0) & (exits < 3)).all()
            assert _realised(policy, some)[1] <= policy.budget
            assert np.isfinite(policy.scores(some.probs)).all()


SIMPLE = ("max_prob", "vote", "patience", "static")


@pytest.mark.parametrize(
    ("exits", "samples", "names"),
    [
        (2, 20, (*SIMPLE, "eenet")),
        (12, 20, SIMPLE),
        (2, 1, ("eenet",)),
        (3, 7, ("eenet",)),
        (12, 20, ("eenet",)),
        pytest.param(12, 20, ("eenet_paper",), marks=pytest.mark.slow),
    ],
)
def test_few_and_many_exits_and_hardly_any_samples(exits, samples, names):
    some = synthetic(samples=samples, exits=exits, classes=2)
    costs = tuple(float(k) for k in range(1, exits + 1))
    budgets = [1.0, (1 + exits) / 2, float(exits)]
    for name in names:
        for policy in eenet_jax.fit(some, costs, budgets, policy=name, **QUICK.get(name, {})):
            assert _realised(policy, some, costs)[1] <= policy.budget


@pytest.mark.parametrize("name", ["eenet", "max_prob"])
def test_costs_may_span_six_orders_of_magnitude(name):
    some, costs = synthetic(exits=4, samples=400), (1.0, 10.0, 1e3, 1e6)
    budgets = [1.0, 1.5, 9.0, 500.0, 3e5, 1e6]
    policies = eenet_jax.fit(some, costs, budgets, policy=name, **QUICK.get(name, {}))
    for policy in policies:
        assert _realised(policy, some, costs)[1] <= policy.budget
    accuracies = [policy.info["validation_accuracy"] for policy in policies]
    assert accuracies[0] == pytest.approx(some.correctness()[0].mean())
    # Hardly anybody can be sent on for 500, and nearly a third of all for 300,000.
    assert accuracies[-2] > accuracies[0] + 0.05
    rivals = eenet_jax.fit(some, costs, budgets, policy="max_prob")
    for policy, rival in zip(policies, rivals, strict=True):
        known = rival.info["validation_accuracy"]
        assert policy.info["validation_accuracy"] >= known - 0.02


def test_no_baseline_has_a_higher_cross_fitted_accuracy_than_eenet(fitted, predictions):
    names = ("max_prob", "entropy", "vote", "patience", "static")
    for place, policy in enumerate(fitted["eenet"]):
        found = policy.info["cross_fitted_accuracy"]
        ours = policy.info["chosen_cross_fitted_accuracy"]
        assert ours >= max(found[name] for name in names)
        for name in ("max_prob", "entropy", "vote", "patience"):
            theirs = fitted[name][place].info["validation_accuracy"]
            assert found[name] == pytest.approx(theirs)


@pytest.mark.parametrize("name", ["eenet", "max_prob"])
def test_budgets_at_an_exits_cost_or_just_below_are_used(name):
    some, costs = synthetic(samples=400), (1.0, 3.0, 9.0)
    budgets = [1.2, 2.6, float(np.nextafter(3.0, 0)), 3.0 - 1e-7, 3.0]
    for policy in eenet_jax.fit(some, costs, budgets, policy=name, **QUICK.get(name, {})):
        assert policy.budget - 2 * 8.0 / 400 <= policy.info["validation_cost"] <= policy.budget


def test_a_policy_does_not_depend_on_what_other_budgets_are_asked_for(predictions):
    quick = QUICK["eenet"]
    alone = eenet_jax.fit(predictions, COSTS, [2.5], **quick)[0]
    among = eenet_jax.fit(predictions, COSTS, [2.4, 2.5, 2.6, 3.0], **quick)[1]
    assert alone.info["chosen"] == among.info["chosen"]
    np.testing.assert_allclose(alone.thresholds, among.thresholds, rtol=1e-5)


def test_few_samples_get_the_best_baseline_and_say_so():
    policy = eenet_jax.fit(synthetic(samples=7), COSTS, [2.0])[0]
    assert policy.info["chosen"] in ("max_prob", "entropy", "vote", "patience", "static")


def test_every_baseline_is_a_contender():
    assert set(MEASURE_OF_BASELINE) == set(BASELINES)


def test_settings_of_the_learned_policies_share_no_name_by_accident():
    ours, paper = (set(setting_names(name)) for name in ("eenet", "eenet_paper"))
    # What memory fits may take means the same to both.
    assert ours & paper == {"memory_limit_gb"}


MISTYPED = """
from eenet_jax.policies.eenet import EENetSettings
bad = [{"folds": 2.5}, {"folds": "many"}, {"gain_shares": ("a",)}, {"score_measures": "luck"}]
for given in bad:
    try:
        EENetSettings(**given)
    except ValueError as error:
        print(error)
good = EENetSettings(gain_shares=0.8, score_measures=["max"])
print(good.gain_shares, good.score_measures)
"""


def test_mistyped_settings_are_named_and_lists_are_as_good_as_tuples():
    # In a process of its own, where no hook checks types: as it is for users.
    done = subprocess.run(
        [sys.executable, "-c", MISTYPED], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    words = ["folds is 2.5", "folds is 'many'", "gain_shares has 'a'", "score_measures has 'luck'"]
    for line, word in zip(lines, [*words, "(0.8,) ('max',)"], strict=True):
        assert word in line


@pytest.mark.parametrize(
    "damage",
    [{"measure": "luck"}, {"last": [[1.0], [2.0], [3.0]]}, {"answer_weights": [[1.0, 2.0]]}],
)
def test_files_of_eenet_are_checked(fitted, tmp_path, damage):
    path = tmp_path / "policy.json"
    fitted["eenet"][1].save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(InputError, match=r"policy\.json"):
        eenet_jax.load_policy(path)


def test_intervals_hold_the_validation_figures(fitted):
    for policies in fitted.values():
        for policy in policies:
            low, high = policy.info["cost_interval_95"]
            assert low <= policy.info["validation_cost"] + 0.02
            assert high >= policy.info["validation_cost"] - 1e-9
            low, high = policy.info["accuracy_interval_95"]
            assert 0 <= low < high <= 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["max_prob", "entropy", "vote", "patience"]))
def test_budgets_hold_whatever_the_predictions(seed, name):
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(4, 0.3), (3, 200)).round(1).astype(np.float32)
    probs[..., 0] += 1 - probs.sum(-1)
    probs = np.abs(probs) / np.abs(probs).sum(-1, keepdims=True)
    some = ExitPredictions(probs=probs, labels=random.integers(0, 4, 200))
    for policy in eenet_jax.fit(some, COSTS, BUDGETS, policy=name):
        assert _realised(policy, some)[1] <= policy.budget


@pytest.mark.parametrize(
    ("arguments", "settings_", "words"),
    [
        (([1.0, 2.0], [1.5]), {}, "2 costs for 3 exits"),
        ((COSTS, [0.5]), {}, r"from 1(\.0)? to 4"),
        ((COSTS, [4.5]), {}, r"from 1(\.0)? to 4"),
        ((COSTS, []), {}, "no budgets"),
        ((COSTS, ["two"]), {}, "'two' is no number"),
        ((COSTS, [float("nan")]), {}, "not finite"),
        ((COSTS, [2.0]), {"policy": "eenett"}, "known are eenet, eenet_paper, max_prob"),
        ((COSTS, [2.0]), {"policy": "eenet", "epoch": 3}, "'epoch' is unknown"),
        ((COSTS, [2.0]), {"policy": "max_prob", "epochs": 3}, "it takes none"),
        ((COSTS, [2.0]), {"policy": "eenet", "folds": 1}, "folds is 1"),
        ((COSTS, [2.0]), {"policy": "eenet_paper", "restarts": 0}, "restarts is 0"),
        ((COSTS, [2.0]), {"exit_distribution": "softmax"}, "'exit_distribution' is unknown"),
    ],
)
def test_bad_arguments_say_what_is_wrong(predictions, arguments, settings_, words):
    with pytest.raises(InputError, match=words):
        eenet_jax.fit(predictions, *arguments, **settings_)


def test_probs_of_another_network_are_refused(fitted):
    with pytest.raises(InputError, match="2 exits"):
        fitted["max_prob"][0].decide(synthetic(exits=2).probs)


def test_a_path_of_predictions_is_as_good_as_predictions(predictions, tmp_path, fitted):
    predictions.save(tmp_path / "val.npz")
    policies = eenet_jax.fit(tmp_path / "val.npz", "1,2.5,4", BUDGETS, policy="entropy")
    for ours, theirs in zip(policies, fitted["entropy"], strict=True):
        np.testing.assert_array_equal(ours.thresholds, theirs.thresholds)


@pytest.mark.parametrize("classes", [3, 10])
def test_a_score_inside_a_larger_program_has_the_bits_of_the_fit(classes):
    # Five exits: the geometric mean divides by 3 and by 5, which a program might multiply by.
    some = synthetic(samples=300, exits=5, classes=classes)
    random = np.random.default_rng(0)
    now, last = random.normal(size=(2, 5, num_features(5) + classes)).astype(np.float32)
    thresholds = np.asarray([0.0] * 4 + [-np.inf], np.float32)
    learned = EENet(
        measure="", gain_share=0.8, now=now, last=last, budget=2.0, thresholds=thresholds,
        costs=(1.0, 2.0, 3.0, 4.0, 5.0),
    )  # fmt: skip
    scores = learned.scores(some.probs)
    for k in range(5):
        inside = jax.jit(lambda probs, k=k: 1 * learned.score(k, probs))
        np.testing.assert_array_equal(inside(some.probs[: k + 1]), scores[k])
        np.testing.assert_array_equal(inside(some.probs[: k + 1, :7]), scores[k, :7])


@pytest.mark.parametrize("name", ["max_prob", "eenet", "eenet_paper"])
def test_exits_that_are_missing_or_unknown_are_named(fitted, predictions, name):
    policy, probs = fitted[name][2], predictions.probs
    for k, some, words in (
        (1, probs[:1], "has 1 exits"),
        (3, probs, "k is 3"),
        (-1, probs, "k is"),
    ):
        with pytest.raises(InputError, match=words):
            policy.score(k, some)
