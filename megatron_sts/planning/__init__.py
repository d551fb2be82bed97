"""Planning a run before any GPU is rented: from the recipe alone, in seconds, without torch.

scope.py       how long each stage of training is
sparsity.py    what it skips and drops
costs.py       what a micro-batch costs a rank
memory.py      bytes of weights, gradients and optimiser on a rank; activations.py those of activations
hardware.py    what machines are assumed to do; communication.py, step_time.py: seconds of a step on them
fit.py         the cheapest setting that fits a GPU; usage.py what a stage takes
prediction.py  simulated step times
split.py       the split of the layers that evens the pipeline
forecast.py    all of it for a recipe
text.py, usage_text.py, record.py, plot.py    the forecast in words, as json, as a picture
"""

from megatron_sts.planning.forecast import RecipeForecast, forecast
from megatron_sts.planning.hardware import Hardware
from megatron_sts.planning.record import forecast_record, step_records
from megatron_sts.planning.text import forecast_text

__all__ = ["Hardware", "RecipeForecast", "forecast", "forecast_record", "forecast_text", "step_records"]
