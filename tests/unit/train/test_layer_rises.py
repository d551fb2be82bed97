"""Shows what a user is told of measured rises."""

from megatron_sts.train.layer_rises import told


def test_what_is_protected_is_told() -> None:
    said = told((0.7, 0.1, -0.01), "visual", 0.5, 1.2)
    assert said == (
        "loss 1.200; without a layer's MLP for visual tokens it rises by -0.010 to 0.700 nats; "
        "never skipped: [0], which rise by more than 0.5"
    )


def test_a_loss_that_falls_without_a_layer_is_warned_of() -> None:
    said = told((-2.3, 0.1), "all", 0.5, 6.7)
    assert said.startswith("loss 6.700; without a layer it rises by -2.300 to 0.100 nats; none is protected; ")
    assert "the weights do not fit this data yet" in said and "docs/redundancy.md" in said
