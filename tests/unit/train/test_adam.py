"""Shows that SharedStepAdamW is torch's AdamW, but for a step count that goes on where a parameter is left out."""

import torch

from megatron_sts.train.adam import SharedStepAdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def make_parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,), (2, 2))]


def groups(parameters: list[torch.nn.Parameter]) -> list[dict]:
    """Two groups: matrices with weight decay and a rate of their own, the vector without."""
    matrices, vectors = [parameters[0], parameters[2]], [parameters[1]]
    return [{"params": matrices, "lr": 3e-3}, {"params": vectors, "weight_decay": 0.0}]


def make(parameters: list[torch.nn.Parameter]) -> SharedStepAdamW:
    return SharedStepAdamW(torch.optim.AdamW(groups(parameters), **SETTINGS))


def take_steps(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    steps: range,
    without: dict[int, set[int]] | None = None,
) -> None:
    """Steps with gradients that depend on the step's number alone; `without`: parameters left out of a step."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if number in (without or {}).get(step, ()) else gradient
        optimizer.step()


def held(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Copies of all weights and moments."""
    moments = [optimizer.state[parameter][name] for parameter in parameters for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*parameters, *moments)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_without_skips_it_is_adamw_bitwise():
    ours, theirs = make_parameters(), make_parameters()
    shared, reference = make(ours), torch.optim.AdamW(groups(theirs), fused=True, **SETTINGS)
    for step in range(20):
        take_steps(shared, ours, range(step, step + 1))
        take_steps(reference, theirs, range(step, step + 1))
        assert same(held(shared, ours), held(reference, theirs))


def test_weights_and_moments_of_a_skipped_parameter_stay():
    parameters = make_parameters()
    optimizer = make(parameters)
    take_steps(optimizer, parameters, range(3))
    before = held(optimizer, parameters)
    take_steps(optimizer, parameters, range(3, 6), without={3: {0}, 4: {0}, 5: {0}})
    after = held(optimizer, parameters)
    for number in (0, 3, 4):  # the first parameter and its two moments
        assert torch.equal(after[number], before[number])
    assert not torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])


def test_step_count_goes_on_for_a_skipped_parameter():
    skipped, reference = make_parameters(), make_parameters()
    optimizer = make(skipped)
    take_steps(optimizer, skipped, range(5), without={0: {0}, 1: {0}, 2: {0}, 3: {0}})
    # By hand: one update with moments from zero, corrected as the fifth step.
    generator = torch.Generator().manual_seed(104)
    gradient = torch.randn((4, 3), generator=generator)
    mean, square = 0.1 * gradient / (1 - 0.9**5), 0.02 * gradient**2 / (1 - 0.98**5)
    start = reference[0].detach()
    expected = start * (1 - 3e-3 * 0.1) - 3e-3 * mean / (square.sqrt() + 1e-6)
    torch.testing.assert_close(skipped[0].detach(), expected, rtol=1e-6, atol=1e-7)
