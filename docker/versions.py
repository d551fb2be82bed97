"""Prints what an image holds, and fails where that is not what it was to hold: `versions.py cpu|gpu`, at build."""

import sys
from importlib.metadata import PackageNotFoundError, distribution

import torch

from megatron_sts.errors import MegatronStsError
from megatron_sts.model.precision import why_not_offered
from megatron_sts.versions import check_versions

EXTENSIONS = (
    ("transformer_engine.pytorch", "TransformerLayer"),
    ("fused_weight_gradient_mlp_cuda", "wgrad_gemm_accum_fp32"),
)
"""What is used of them where it can be loaded; some need a driver, which is not there while an image is built."""
PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "numpy", "transformer-engine", "apex")


def main(machine: str) -> int:
    """Print the versions and check them; 1 where something is wrong."""
    print(f"python {sys.version.split()[0]}, CUDA of torch: {torch.version.cuda}")
    for name in PACKAGES:
        try:
            found = distribution(name)
            print(f"{name} {found.version} ({found.locate_file('')})")
        except PackageNotFoundError:
            print(f"{name}: not installed")
    for module, attribute in EXTENSIONS if machine == "gpu" else ():
        print(f"{module}: {why_not_offered(module, attribute) or 'can be used'}")
    for problem in (problems := list(find_problems(machine))):
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def find_problems(machine: str) -> list[str]:
    """What is wrong with this image for a machine with (`gpu`) or without (`cpu`) a GPU."""
    problems = []
    try:
        check_versions()
    except MegatronStsError as error:
        problems.append(str(error))
    if machine == "cpu":
        return problems
    if torch.version.cuda is None:
        problems.append("torch has no CUDA")
    # An own environment lies over the image's packages: what stands in it replaces the image's.
    if str(distribution("torch").locate_file("")).startswith(sys.prefix):
        problems.append(f"torch was installed again, into {sys.prefix}; the image's own is the one to use")
    try:
        distribution("transformer-engine")
    except PackageNotFoundError:
        problems.append("the image has no Transformer Engine")
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
