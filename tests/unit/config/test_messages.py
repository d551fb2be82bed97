"""Shows how wrong values are located: names of stages, the file or override they come from."""

from megatron_sts.config import Recipe
from megatron_sts.config.messages import Sources, dotted, key_problems, shortened
from megatron_sts.config.overrides import parse_override


def test_a_stage_is_located_by_name_and_a_nameless_one_by_number() -> None:
    values = {"stages": [{"name": "align"}, {"steps": 1}]}
    assert dotted(("stages", 0, "skip", "alpha"), values) == "stages.align.skip.alpha"
    one, two = {"skip": {"alpha": 1}}, {"skip": [{"alpha": 1}, {"tokens": "visual"}]}
    assert dotted(("stages", 0, "skip", 0, "alpha"), {"stages": [{"name": "tune", **one}]}) == "stages.tune.skip.alpha"
    several = {"stages": [{"name": "tune", **two}]}
    assert dotted(("stages", 0, "skip", 1, "alpha"), several) == "stages.tune.skip.visual.alpha"
    assert dotted(("stages", 1, "steps"), values) == "stages[1].steps"
    assert dotted(("stages", 0, "trains", 2), values) == "stages.align.trains[2]"


def test_the_source_is_the_last_override_at_or_above_a_field() -> None:
    overrides = (parse_override("parallel={tensor: 2}"), parse_override("parallel.tensor=4"))
    sources = Sources("recipe.yaml", "sizes.yaml", overrides)
    assert sources.of("parallel.tensor") == "override 'parallel.tensor=4'"
    assert sources.of("parallel.pipeline") == "override 'parallel={tensor: 2}'"
    assert sources.of("parallels") == "recipe.yaml"
    assert sources.of("model.architecture.language.layers") == "sizes.yaml"
    assert sources.of("model.architecture_file") == "recipe.yaml"


def test_keys_are_compared_with_the_names_of_the_yaml_file() -> None:
    values = {"stages": [{"name": "align", "batch": {"global": 2, "global_size": 2}}]}
    assert key_problems(values, Recipe, Sources("FILE")) == [
        "unknown key 'stages.align.batch.global_size' in FILE; did you mean 'global'? valid keys here: global, micro"
    ]


def test_values_are_shown_as_yaml_writes_them_and_not_at_length() -> None:
    assert [shortened(value) for value in (None, True, "a", 1e-3)] == ["null", "true", '"a"', "0.001"]
    assert len(shortened("x" * 1000)) == 80
