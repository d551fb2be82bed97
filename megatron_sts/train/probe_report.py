"""What a probe found, as json, as text and as a chart."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_sts.planning.plot import save_figure
from megatron_sts.sts.probe import Measured, Trial, best_within, trusted
from megatron_sts.train.probe import LayerWorth, PlanWorth, ProbeResult

# Characters of the longest bar in the table.
_BAR = 24
# Nats; one layer of a pretrained model may rise by more than all others together.
_LONGEST_BAR_AT = 1.0


def record(found: ProbeResult, budget: float) -> dict[str, Any]:
    """The json of tools/probe.py."""
    image = found.image
    return {
        "stage": found.stage,
        "samples": found.samples,
        "supervised_tokens": found.tokens,
        "loss": found.loss,
        "image_worth": None if image is None else {"loss_rise": image.mean, "standard_error": image.standard_error},
        "layers": [_layer_record(layer) for layer in found.layers],
        "plans": [_plan_record(plan) for plan in found.plans],
        "recommended": recommended(found, budget),
    }


def _layer_record(worth: LayerWorth) -> dict[str, Any]:
    visual = worth.rise_visual
    return {
        "layer": worth.layer,
        "loss_rise": worth.rise.mean,
        # Without images nothing is skipped for visual tokens, and nothing is lost.
        "loss_rise_visual": 0.0 if visual is None else visual.mean,
        "standard_error": worth.rise.standard_error,
        "standard_error_visual": 0.0 if visual is None else visual.standard_error,
        "block_influence": worth.block_influence,
        # Without images no token attends to any.
        "attention_to_visual": worth.attention_to_visual or 0.0,
    }


def _plan_record(worth: PlanWorth) -> dict[str, Any]:
    trial = worth.trial
    return {
        "by": trial.by,
        "tokens": trial.tokens,
        "alpha": trial.alpha,
        "keep_ratio": trial.keep_ratio,
        "loss_rise": worth.rise.mean,
        "standard_error": worth.rise.standard_error,
        "flops_saved": worth.flops_saved,
    }


def recommended(found: ProbeResult, budget: float) -> dict[str, Any]:
    """What saves most within a budget of nats at the first step, of the plans whose rises can be trusted; `recipe` is
    None where nothing does, least_loss_rise of a trusted plan, None where none is."""
    measured = _measured(found)
    best, improve = best_within(budget, measured), sum(one.improves for one in measured)
    told = {"budget": budget, "plans_that_improve": improve}
    if best is None:
        rises = [one.rise for one, is_trusted in zip(measured, trusted(measured), strict=True) if is_trusted]
        return told | {"recipe": None, "least_loss_rise": min(rises, default=None)}
    return told | {"recipe": lines(found.plans[best].trial), **_plan_record(found.plans[best])}


def _measured(found: ProbeResult) -> list[Measured]:
    return [Measured(one.trial, one.rise.mean, one.rise.standard_error, one.flops_saved) for one in found.plans]


def lines(trial: Trial) -> str:
    """The line of a recipe's stage, to paste."""
    ((key, values),) = trial.settings().items()
    inside = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{key}: {{{inside}}}"


def text(found: ProbeResult, budget: float) -> str:
    """Tables of at most 100 columns, and what follows from them."""
    told = [f"stage {found.stage}: {found.samples} held-out samples, {found.tokens:,} supervised tokens"]
    told.append(f"loss with all layers and visual tokens {found.loss:.4f} nats a supervised token")
    if found.image is not None:
        worth = found.image
        reads = "" if worth.mean > 2 * worth.standard_error else ": within noise the model does not read it"
        told.append(f"with another sample's image it rises by {_plus_minus(worth.mean, worth.standard_error)}{reads}")
    told += [
        "",
        f"{'layer':>5}  {'rise without it':>18}  {'without its visual MLP':>22}  {'influence':>9}  {'attention':>9}",
    ]
    for layer in found.layers:
        visual = "" if layer.rise_visual is None else _plus_minus(*_both(layer.rise_visual))
        bar = "#" * round(_BAR * min(1.0, max(0.0, layer.rise.mean) / _LONGEST_BAR_AT))
        rise, turned = _plus_minus(*_both(layer.rise)), layer.block_influence
        given = "" if layer.attention_to_visual is None else f"{layer.attention_to_visual:.1%}"
        told.append(f"{layer.layer:>5}  {rise:>18}  {visual:>22}  {turned:>9.3f}  {given:>9}  {bar}".rstrip())
    told += ["", f"{'plan':<44}{'rise':>18}{'FLOPs saved':>14}"]
    for plan in found.plans:
        told.append(f"{_name(plan.trial):<44}{_plus_minus(*_both(plan.rise)):>18}{plan.flops_saved:>14.1%}")
    return "\n".join([*told, "", _advice(found, budget)])


def _both(estimate: Any) -> tuple[float, float]:
    return estimate.mean, estimate.standard_error


def _plus_minus(mean: float, error: float) -> str:
    return f"{mean:.3f} +- {error:.3f}"


def _name(trial: Trial) -> str:
    if trial.tokens is None:
        return f"keep {trial.keep_ratio:g} of the visual tokens"
    what = "layers" if trial.tokens == "all" else "visual MLPs"
    return f"skip {trial.alpha:.2f} of the {what} by {trial.by}"


def _advice(found: ProbeResult, budget: float) -> str:
    best, told = recommended(found, budget), []
    if improve := best["plans_that_improve"]:
        told.append(
            f"{improve} of the plans lower{'s' if improve == 1 else ''} the loss by more than noise: the weights do "
            "not fit this data yet, and what\nleaving out will cost is not seen. Such plans, and higher rates of their "
            "kind, are not recommended;\ntrain longer densely, or align longer, and probe again."
        )
    if best["recipe"] is not None:
        told.append(
            f"within {budget:g} nats at the first step {best['flops_saved']:.1%} of the stage's FLOPs can be saved "
            f"(rise {best['loss_rise']:.3f}):\n  {best['recipe']}"
        )
    elif best["least_loss_rise"] is not None:
        told.append(
            f"nothing can be saved within {budget:g} nats: the least that a plan raises the loss by is "
            f"{best['least_loss_rise']:.3f}"
        )
    else:
        told.append("nothing is recommended")
    return "\n".join(told)


def plot(found: ProbeResult, path: Path) -> None:
    """Bars of the layers' rises, and the plans' rises over what they save; ConfigError where it cannot be written."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    numbers = [layer.layer for layer in found.layers]
    visual = [layer.rise_visual for layer in found.layers if layer.rise_visual is not None]
    width = 0.8 if not visual else 0.4
    kinds = [("without the layer", [layer.rise for layer in found.layers], "#dd8452", -width / 2 if visual else 0.0)]
    if visual:
        kinds.append(("without its MLP for visual tokens", visual, "#4c72b0", width / 2))
    for name, rises, colour, shift in kinds:
        left.bar(
            [number + shift for number in numbers],
            [rise.mean for rise in rises],
            width,
            yerr=[min(rise.standard_error, 1e3) for rise in rises],
            color=colour,
            label=name,
            error_kw={"elinewidth": 0.7, "ecolor": "0.3"},
        )
    left.set_yscale("symlog", linthresh=0.1)
    left.axhline(0, color="0.3", linewidth=0.8)
    left.set(xlabel="layer", ylabel="rise of the loss (nats a token)", title=f"{found.stage}: what each layer is worth")
    left.legend(frameon=False, fontsize="small")
    markers = {
        ("all", "depth"): "x",
        ("all", "redundancy"): "o",
        ("visual", "depth"): "+",
        ("visual", "redundancy"): "s",
    }
    for (tokens, by), marker in markers.items():
        chosen = [plan for plan in found.plans if (plan.trial.tokens, plan.trial.by) == (tokens, by)]
        name = f"{'layers' if tokens == 'all' else 'visual MLPs'} by {by}"
        _points(right, chosen, marker, "#dd8452" if tokens == "all" else "#4c72b0", name)
    _points(right, [plan for plan in found.plans if plan.trial.tokens is None], "^", "0.4", "visual tokens kept")
    right.set_yscale("symlog", linthresh=0.1)
    right.set(xlabel="training FLOPs saved", ylabel="rise of the loss", title="whole plans")
    right.xaxis.set_major_formatter("{x:.0%}")
    right.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def _points(axes: Any, plans: list[PlanWorth], marker: str, colour: str, name: str) -> None:
    if plans:
        saved, rises = [plan.flops_saved for plan in plans], [plan.rise.mean for plan in plans]
        axes.plot(saved, rises, marker=marker, color=colour, linestyle=":", label=name)


def as_json(found: ProbeResult, budget: float) -> str:
    """The json on standard output."""
    return json.dumps(record(found, budget), indent=1)
