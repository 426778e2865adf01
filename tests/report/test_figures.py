"""Figures are written, not blank, and drawn from the numbers in the files."""

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread

from eenet_jax.confidence import confidence_measures
from eenet_jax.data import datasets
from eenet_jax.report import figures, gallery
from eenet_jax.report.frontier_figure import accuracy_cost, full_accuracy
from eenet_jax.report.report import FIGURES
from eenet_jax.report.sources import read_sources
from eenet_jax.types import ExitPredictions


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_written_and_not_blank(report_folders, name):
    _, out = report_folders
    pixels = imread(out / "figures" / f"{name}.png")
    assert min(pixels.shape[:2]) > 400
    assert pixels[..., :3].std() > 0.05
    # Nothing is cut off at the border: a margin of white all around.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge[..., :3].min() > 0.9


def test_the_picture_shows_the_policies_and_not_just_the_oracle(report_folders):
    sources = read_sources(report_folders[0])
    figure = accuracy_cost(sources, "a network")
    top, below = figure.axes
    low, high = top.get_ylim()
    shown = [row for fit in sources.fits for row in fit.rows if row.split == "test"]
    levels = [100 * row.accuracy for row in shown if row.policy != "oracle"]
    assert low < min(levels)
    assert max(levels) < high
    assert max(levels) - min(levels) > 0.6 * (high - low)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "eenet"
    assert {"static exits", "oracle (bound)"} <= set(labels)
    assert "max_prob" in below.get_ylabel()
    assert "MMACs" in top.get_xlabel()


def test_the_full_network_is_the_last_exit(folders):
    sources = read_sources(folders)
    right = sources.runs[0].predictions["test"].correctness()[-1].mean(dtype=float)
    assert full_accuracy(sources) == pytest.approx(100 * right)
    assert full_accuracy(read_sources(folders[1:])) is None


def test_exit_rates_are_means_over_fits_and_sum_to_one(report_folders):
    sources = read_sources(report_folders[0])
    rates = figures.mean_rates(sources, "eenet")
    np.testing.assert_allclose(rates.sum(1), 1, atol=1e-9)
    rows = sources.rows("eenet", sources.budgets[2], "test")
    expected = np.mean([row.exit_rates for row in rows], axis=0)
    np.testing.assert_allclose(rates[2], expected)


def test_bars_are_as_high_as_the_measured_speedups(folders):
    sources = read_sources(folders)
    figure = figures.speedup(sources, "a network")
    masked = figure.axes[1].containers[0]
    assert masked.get_label() == "masked"
    expected = [
        e["speedup"]
        for e in sources.fits[0].execution
        if e["strategy"] == "masked" and e["batch_size"] == 32
    ]
    np.testing.assert_allclose([bar.get_height() for bar in masked], expected)


def test_curves_hold_validation_accuracy_per_exit(folders):
    run = read_sources(folders).runs[0]
    figure = figures.training_curves(run, "a network")
    lines = figure.axes[0].get_lines()
    expected = np.asarray([e["accuracy"] for e in run.metrics if e["split"] == "val"])
    assert len(lines) == expected.shape[1]
    for k, line in enumerate(lines):
        np.testing.assert_allclose(line.get_ydata(), 100 * expected[:, k])


def test_leavers_are_ranked_and_never_shown_twice():
    scores = np.asarray([[0.9, 0.1, 0.5, 0.7, 0.3], [0.2, 0.4, 0.6, 0.8, 1.0]], np.float32)
    first, second = gallery.choose_leavers(scores, np.asarray([0, 0, 0, 0, 1]), a_side=3)
    assert first.count == 4
    assert first.easiest.tolist() == [0, 3]
    assert first.hardest.tolist() == [1, 2]
    assert second.easiest.tolist() == [4]
    assert second.hardest.tolist() == []


def test_the_gallery_marks_wrong_answers_and_only_those(report_folders, image_source):
    inputs, _ = report_folders
    sources = read_sources(inputs)
    figure, sentence = gallery.easiest_hardest(sources, image_source)
    titles = [axes.get_title() for half in figure.subfigs for axes in half.axes]
    marked = [title for title in titles if "✗" in title]
    assert marked
    assert all("\nsaid " in title for title in marked)
    for title in marked:
        true, said = title.split(" ✗\nsaid ")
        assert true != said
    assert sources.budgets[2] in sentence


def test_images_are_found_by_their_ids():
    split = datasets.open_split("digits", "test")
    places = np.asarray([5, 0, 17])
    found = gallery.open_images({"dataset": "digits"}, split.ids[places])
    np.testing.assert_array_equal(found, split.images[places])


def test_images_with_labelled_pixels_show_the_share_that_is_right(report_folders, image_source):
    sources = read_sources(report_folders[0])
    run = sources.runs[0]
    test = run.predictions["test"]
    exits, samples = test.probs.shape[:2]
    shares = np.random.default_rng(0).uniform(0, 1, (exits, samples)).astype(np.float32)
    dense = ExitPredictions(
        probs=test.probs,
        labels=np.full(samples, -1),
        ids=test.ids,
        meta=test.meta,
        correct=shares,
        measures=np.asarray(confidence_measures(test.probs)),
    )
    run = dataclasses.replace(run, predictions={"test": dense})
    sources = dataclasses.replace(sources, runs=(run,))
    figure, sentence = gallery.easiest_hardest(sources, image_source)
    titles = [axes.get_title() for half in figure.subfigs for axes in half.axes]
    shown = {title for title in titles if title}
    assert shown <= {f"{100 * share:.0f} % right" for share in shares.ravel()}
    assert len(shown) > 5
    assert "share of its labelled pixels" in sentence
