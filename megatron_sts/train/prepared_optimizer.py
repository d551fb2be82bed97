"""megatron-core's optimiser, whose step can be taken up where the gradients are prepared and their norm is known."""

from megatron.core.optimizer.optimizer import ChainedOptimizer


class PreparedOptimizer(ChainedOptimizer):
    """Lets its caller decide on the step between the norm and the clipping; the step itself is megatron-core's.

    Contract: `step` of megatron-core asks prepare_grads and get_grad_norm once each, before it changes anything.
    """

    def __init__(self, made: ChainedOptimizer):
        super().__init__(made.chained_optimizers)
        self._known_norm: float | None = None

    def prepare_grads(self) -> bool:
        """Whether a gradient is not finite, where they are scaled. Has nothing to do in `step_with_norm`."""
        return False if self._known_norm is not None else super().prepare_grads()

    def get_grad_norm(self) -> float:
        """The norm of all gradients, over all ranks; in `step_with_norm` the one it was given."""
        return self._known_norm if self._known_norm is not None else super().get_grad_norm()

    def step_with_norm(self, grad_norm: float) -> None:
        """megatron-core's step, clipping included, from prepared gradients of this norm before clipping."""
        self._known_norm = grad_norm
        try:
            self.step()
        finally:
            self._known_norm = None
