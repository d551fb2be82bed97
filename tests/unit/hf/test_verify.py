"""Shows that an exported model which is not its checkpoint's is found out."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megatron_sts.errors import ConversionError
from megatron_sts.hf import ImportOptions, export_checkpoint, import_llava, verify_export
from tests.ranks import run_ranks
from tests.unit.hf.sources import nothing


def _verify(model: Path, checkpoint: Path) -> str:
    """What the verification says, in a process of its own, as it makes a process group."""
    try:
        return verify_export(model, checkpoint).text()
    except ConversionError as error:
        return str(error)


def test_a_changed_weight_is_found_by_the_logits(exported: Path, tmp_path: Path) -> None:
    init, model = tmp_path / "init", tmp_path / "model"
    import_llava(exported, init, ImportOptions(), nothing)
    export_checkpoint(init, model)
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.model.norm.weight"] *= 1.01
    save_file(tensors, file, metadata={"format": "pt"})
    (said,) = run_ranks(1, _verify, model, init)
    assert "its logits differ from those of" in said
    assert "export it again" in said


@pytest.mark.parametrize(
    ("change", "kind"), [(lambda tensors: tensors.popitem(), "missing_keys"), (lambda tensors: None, "unexpected_keys")]
)
def test_missing_and_unexpected_weights_are_named(exported: Path, tmp_path: Path, change, kind: str) -> None:
    model = Path(shutil.copytree(exported, tmp_path / "model"))
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    if kind == "unexpected_keys":
        tensors["language_model.model.extra.weight"] = tensors["language_model.model.norm.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=f"loaded with {kind}"):
        verify_export(model)
