"""The machines that planning takes times from: assumed figures, none of them measured by this project.

Peak rates are those of NVIDIA's data sheet of the H100 SXM, without sparsity; of these 45% are taken to be reached in
bf16, where well-fed training of this size is reported to lie, and 35% in FP8, whose products are not all of a layer. A
GPU gives 450 GB/s to NVLink and 50 GB/s to the network in each direction on the usual node of eight; of both some 80%
are taken. Host time: of one of Transformer Engine's linear modules up to 0.1 ms a forward pass was reported
(github.com/NVIDIA/TransformerEngine/issues/2053), which for a layer's four, its norms and its attention, forward and
backward, makes about 1 ms; FP8, which quantises before each product, is taken to need twice that.
"""

from dataclasses import dataclass

_PEAK = {"fp32": 67e12, "bf16": 989e12, "fp8": 1979e12}
_REACHED = {"fp32": 0.6, "bf16": 0.45, "fp8": 0.35}
_LAUNCH_SECONDS = {"fp32": 1e-3, "bf16": 1e-3, "fp8": 2e-3}


@dataclass(frozen=True)
class Hardware:
    """Nodes of H100 GPUs.

    intra_node, inter_node: bytes a second that a GPU sends to others, in its node and through the network. latency:
    seconds before a transfer begins. memory: bytes of a GPU; None: not asked for.
    """

    gpus_per_node: int = 8
    intra_node: float = 350e9
    inter_node: float = 40e9
    latency: float = 15e-6
    memory: float | None = None

    def rate(self, precision: str) -> float:
        """FLOPs a second that products are taken to run at."""
        return _PEAK[precision] * _REACHED[precision]

    def peak(self, precision: str) -> float:
        """FLOPs a second of the data sheet."""
        return _PEAK[precision]

    def launch_seconds(self, precision: str) -> float:
        """Host time that a layer's forward and backward pass take, whatever their size."""
        return _LAUNCH_SECONDS[precision]

    def bandwidth(self, size: int, stride: int) -> float:
        """Bytes a second of a rank in a collective of `size` ranks that lie `stride` ranks apart.

        The members in a node send through all of their network adapters together.
        """
        if size * stride <= self.gpus_per_node:
            return self.intra_node
        members = max(1, min(size, self.gpus_per_node // stride))
        return min(self.intra_node, members * self.inter_node)
