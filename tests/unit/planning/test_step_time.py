"""Shows what a rank sends in a step, by hand, what hides it, and when launches take longer than products."""

import pytest

from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.step_time import LayersRun, step_seconds

DENSE = LayersRun([1.0] * 32, [0.0] * 32, 576)
HALF_FOR_TEXT = LayersRun([1.0] * 32, [0.5] * 32, 576)
ROW, ROWS = 2 * 4096, 2 * 916


def seconds(make, data_parallel=1, layers=DENSE, hardware=None, **changes):
    recipe = make(**changes)
    return step_seconds(recipe, recipe.stage("tune"), data_parallel, hardware or Hardware(), layers)


def test_one_rank_sends_nothing_and_takes_what_its_products_take(make):
    found = seconds(make)
    assert found.transfers == {}
    assert found.total == pytest.approx(found.products)


def test_tensor_parallel_ranks_send_eight_times_their_rows_in_each_layer(make):
    # 16 micro-batches, four collectives in each direction; a rank sends half of what two ranks gather.
    whole = 16 * 32 * 8 * ROWS * ROW / 2
    sequence = {"tensor": 2, "sequence_parallel": True}
    assert seconds(make, parallel=sequence).transfers["tensor"].bytes == pytest.approx(whole)
    again = seconds(make, parallel=sequence, recompute="full").transfers["tensor"]
    assert again.bytes == pytest.approx(1.5 * whole)
    assert again.exposed == again.seconds
    # The MLP's half of it, in half of the layers for 340 of 916 rows.
    some = seconds(make, parallel=sequence, layers=HALF_FOR_TEXT).transfers["tensor"].bytes
    assert some == pytest.approx(whole * (0.5 + 0.5 * (0.5 + 0.5 * 340 / 916)))


def test_gradients_and_weights_are_hidden_by_what_overlaps_them(make):
    trained = 6_738_415_616 + 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    plain = seconds(make, data_parallel=4)
    assert plain.transfers["gradients"].bytes == pytest.approx(2 * 4 * trained * 3 / 4)
    split = seconds(make, data_parallel=4, optimizer={"distributed": True})
    assert split.transfers["gradients"].bytes == pytest.approx(4 * trained * 3 / 4)
    assert split.transfers["weights"].bytes == pytest.approx(2 * trained * 3 / 4)
    assert split.transfers["gradients"].exposed == split.transfers["gradients"].seconds
    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True}
    hidden = seconds(make, data_parallel=4, optimizer={"distributed": True}, parallel=overlap)
    assert hidden.transfers["gradients"].exposed == hidden.transfers["weights"].exposed == 0
    assert hidden.total == pytest.approx(hidden.products)
    slow = Hardware(gpus_per_node=1, inter_node=1e9)
    waiting = seconds(make, 4, hardware=slow, optimizer={"distributed": True}, parallel=overlap)
    assert waiting.total == pytest.approx(waiting.products + sum(one.exposed for one in waiting.transfers.values()))


def test_a_collective_over_nodes_uses_the_adapters_of_its_members():
    machines = Hardware()
    assert machines.bandwidth(8, 1) == machines.bandwidth(4, 2) == machines.intra_node
    # Of 16 ranks one apart, eight a node; of eight that are eight apart, one.
    assert machines.bandwidth(16, 1) == 8 * machines.inter_node
    assert machines.bandwidth(8, 8) == machines.inter_node


def test_the_interleaved_pipeline_hides_what_it_hands_on(make):
    plain, interleaved = (
        seconds(make, parallel={"pipeline": 4, "virtual_pipeline": virtual}).transfers["pipeline"] for virtual in (1, 2)
    )
    assert plain.bytes == pytest.approx(2 * 16 * ROWS * ROW)
    assert interleaved.bytes == pytest.approx(2 * plain.bytes)
    assert plain.exposed == plain.seconds and interleaved.exposed == 0


def test_small_micro_batches_wait_for_their_launches(make):
    launches = seconds(
        make, tune__batch={"global": 32, "micro": 1}, layers=LayersRun([1.0] * 32, [0.0] * 32, 9)
    ).launches
    assert launches.host == pytest.approx(0.032)
    # 349 rows of a 7B layer: 6 x 202e6 FLOPs a row, and attention.
    assert launches.device == pytest.approx(32 * 349 * 6 * 202.4e6 / 445e12, rel=0.02)
    assert launches.host > 0.9 * launches.device
    fp8 = seconds(make, precision="fp8", tune__batch={"global": 32, "micro": 1}).launches
    assert fp8.host == pytest.approx(0.064) and fp8.least_micro == 2
