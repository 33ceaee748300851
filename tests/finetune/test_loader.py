"""Training batches: few shapes, whatever joins them."""

import dataclasses

from equijax import data, graph
from equijax.data.items import prepare, size_of
from equijax.finetune import loader


def test_training_batches_with_replay_share_a_shape_that_evaluation_leaves_alone(folder, student):
    """Salt with one or two cells of silicon of different sizes beside it, in any combination: one compiled step."""
    salt = prepare(data.read_structures(folder / "train.extxyz"), student.config)
    labelled = data.read_structures(folder / "other.extxyz")
    larger = [dataclasses.replace(s, atoms=s.atoms.repeat((2, 1, 1)), forces=None, energy=None) for s in labelled]
    again = prepare([*labelled, *larger], student.config)
    energies = student.variables["constants"]["atomic_energies"]
    training = loader.TrainingSet(student.config, energies, salt, replay=again, batch_size=1, replay_size=2)
    loader.settle(training, 3)
    needed = {graph.round_up(size_of([salt[0], a, b], student.config)) for a in again for b in again if a is not b}
    assert len(needed) > 1
    for items in (salt, again):
        loader.evaluation_graphs(training, items)
    batches = [batch for number in range(3) for batch in loader.epoch(training, number)]
    assert len({(b.graph.nodes.positions.shape, b.graph.senders.shape) for b in batches}) == 1
