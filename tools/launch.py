"""Starts the ranks of a command on this node, with torchrun's options.

python tools/launch.py --nproc-per-node 8 tools/train.py --config RECIPE.yaml [key.sub=value ...]

As torchrun, but an error is the last line on the screen and the exit code is that of the rank that failed first; Ctrl-C
lets the ranks save for as long as that takes. On several nodes: examples/launch/torchrun.sh.
"""

import sys

from megatron_sts.command import command


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the ranks; returns the exit code of the first that failed."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if given else 2
    # Takes a second, and is not needed for the text above.
    from torch.distributed.run import parse_args

    from megatron_sts.launch.agent import launch

    return launch(parse_args(given))


if __name__ == "__main__":
    sys.exit(main())
