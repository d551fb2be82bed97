"""Errors that are the machine's: a full disk, missing rights, too little memory, a missing package."""

import errno

_REMEDIES_OF_FILES = {
    errno.EACCES: "give the rights to it, or name another",
    errno.EPERM: "give the rights to it, or name another",
    errno.EROFS: "name a place that can be written to",
}
_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or write elsewhere",
    errno.EDQUOT: "make room in the quota, or write elsewhere",
    errno.EIO: "look at the disk or the network it is on",
    errno.ESTALE: "look at the network file system",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENOMEM: "give the command more memory",
}
_LESS_GPU_MEMORY = (
    "lower stages.NAME.batch.micro or stages.NAME.data.max_tokens, set recompute, optimizer.distributed or a larger "
    "parallel.tensor; `python tools/plan.py` shows the memory of a rank"
)


def machine_message(error: BaseException) -> str | None:
    """What the machine refused and what to do; None where the error is not the machine's."""
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename is not None
        remedy = _REMEDIES.get(error.errno) or (_REMEDIES_OF_FILES.get(error.errno) if named else None)
        if remedy is not None:
            return f"error: {f'{error.filename}: ' if named else ''}{error.strerror}; {remedy}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("megatron_sts"):
        return f"error: the Python package of {error.name!r} is not installed; install megatron_sts with what it needs"
    # By name, for torch is not imported by every command.
    if type(error).__name__ == "OutOfMemoryError":
        return f"error: the GPU's memory is full ({' '.join(str(error).split())[:300]}); {_LESS_GPU_MEMORY}"
    # torch's own, which it raises in the main thread wherever that is; elsewhere data/loader.py names the lost worker.
    if type(error) is RuntimeError and "DataLoader worker" in str(error):
        return (
            f"error: a process that loads data was lost ({error}); give the machine more memory or the run fewer "
            "data.workers, and start it again"
        )
    if isinstance(error, MemoryError):
        return "error: the machine's memory is full; give the command more, or fewer processes"
    return None
