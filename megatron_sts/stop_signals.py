"""The signals by which a person or a scheduler asks a run to stop."""

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, Slurm's and Kubernetes' end, and the warning before it. megatron_sts/launch/agent.py hands them on."""
