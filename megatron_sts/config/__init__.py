"""The recipe: typed, checked, free of torch. `load_recipe` is the way in."""

from megatron_sts.config.architecture import (
    CLASS_TOKEN_FAMILIES,
    Architecture,
    LanguageArchitecture,
    RotaryScaling,
    VisionArchitecture,
)
from megatron_sts.config.architecture_checks import architecture_problems
from megatron_sts.config.checkpoint_listing import ListedCheckpoint, best_checkpoint, list_checkpoints, prune
from megatron_sts.config.checks import check_recipe, report
from megatron_sts.config.compress_config import CompressConfig, KeepScheduleConfig
from megatron_sts.config.data_config import DataConfig
from megatron_sts.config.fp8_checks import FP8_MULTIPLE
from megatron_sts.config.init_directory import write_architecture
from megatron_sts.config.load import load_architecture, load_recipe
from megatron_sts.config.manifest import (
    MANIFEST_FILE,
    FileEntry,
    entries_of,
    files_of,
    problems_of,
    read_manifest,
    write_manifest,
    write_through,
)
from megatron_sts.config.parallel_config import ParallelConfig
from megatron_sts.config.recipe import ModelConfig, Recipe
from megatron_sts.config.recompute_checks import recompute_warning
from megatron_sts.config.resolved import difference, resolved_yaml
from megatron_sts.config.resume_check import check_accepted, check_resumable, is_accepted
from megatron_sts.config.resume_table import RESUME_TABLE, OnResume, ResumeRule, resume_rule
from megatron_sts.config.run_directory import (
    LATEST_FILE,
    METRICS_FILE,
    OUTDATED,
    PARTIAL,
    QUARANTINE_FILE,
    best_of,
    checkpoint_path,
    checkpoint_root,
    checkpoints_of_stage,
    newest_runs,
    outdated,
    remove_checkpoint,
    step_of,
    write_latest,
)
from megatron_sts.config.run_file import RUN_FILE, Run, read_run, write_run
from megatron_sts.config.running_config import (
    BadStepsConfig,
    CheckpointConfig,
    LoggingConfig,
    LossSpikeConfig,
    StopAfterConfig,
    ValidationConfig,
)
from megatron_sts.config.skip_checks import probability_problem
from megatron_sts.config.skip_config import EarlierGroups, MeasuredRises, Selection, SkipConfig, SkippedTokens
from megatron_sts.config.stage_config import StageConfig, StageLength
from megatron_sts.config.stage_keys import keys_of_stage
from megatron_sts.config.training_config import (
    BatchConfig,
    LearningRateConfig,
    LearningRateScheduleConfig,
    OptimizerConfig,
)
from megatron_sts.config.world import check_world

__all__ = [
    "CLASS_TOKEN_FAMILIES",
    "FP8_MULTIPLE",
    "LATEST_FILE",
    "MANIFEST_FILE",
    "METRICS_FILE",
    "OUTDATED",
    "PARTIAL",
    "QUARANTINE_FILE",
    "RESUME_TABLE",
    "RUN_FILE",
    "Architecture",
    "BadStepsConfig",
    "BatchConfig",
    "CheckpointConfig",
    "CompressConfig",
    "DataConfig",
    "EarlierGroups",
    "FileEntry",
    "KeepScheduleConfig",
    "LanguageArchitecture",
    "LearningRateConfig",
    "LearningRateScheduleConfig",
    "ListedCheckpoint",
    "LoggingConfig",
    "LossSpikeConfig",
    "MeasuredRises",
    "ModelConfig",
    "OnResume",
    "OptimizerConfig",
    "ParallelConfig",
    "Recipe",
    "ResumeRule",
    "RotaryScaling",
    "Run",
    "Selection",
    "SkipConfig",
    "SkippedTokens",
    "StageConfig",
    "StageLength",
    "StopAfterConfig",
    "ValidationConfig",
    "VisionArchitecture",
    "architecture_problems",
    "best_checkpoint",
    "best_of",
    "check_accepted",
    "check_recipe",
    "check_resumable",
    "check_world",
    "checkpoint_path",
    "checkpoint_root",
    "checkpoints_of_stage",
    "difference",
    "entries_of",
    "files_of",
    "is_accepted",
    "keys_of_stage",
    "list_checkpoints",
    "load_architecture",
    "load_recipe",
    "newest_runs",
    "outdated",
    "probability_problem",
    "problems_of",
    "prune",
    "read_manifest",
    "read_run",
    "recompute_warning",
    "remove_checkpoint",
    "report",
    "resolved_yaml",
    "resume_rule",
    "step_of",
    "write_architecture",
    "write_latest",
    "write_manifest",
    "write_run",
    "write_through",
]
