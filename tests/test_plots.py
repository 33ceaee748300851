"""Figures: ticks along a band path."""

from equijax import plots


def test_labels_at_a_jump_of_the_path_share_a_tick():
    labels = ["G", "X", "U", "K", "G", "L", "W", "X"]
    connections = [True, False, True, True, True, False]
    assert plots.tick_labels(labels, connections) == ["G", "X", "U|K", "G", "L", "W", "X"]
