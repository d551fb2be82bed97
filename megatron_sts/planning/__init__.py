"""Planning a run before any GPU is rented: from the recipe alone, in seconds, without torch.

scope.py       how long each stage of training is
sparsity.py    what it skips and drops
costs.py       what a micro-batch costs a rank
memory.py      bytes on a rank
prediction.py  simulated step times
split.py       the split of the layers that evens the pipeline
forecast.py    all of it for a recipe
text.py, record.py, plot.py    the forecast in words, as json, as a picture
"""

from megatron_sts.planning.forecast import RecipeForecast, forecast
from megatron_sts.planning.record import forecast_record, step_records
from megatron_sts.planning.text import forecast_text

__all__ = ["RecipeForecast", "forecast", "forecast_record", "forecast_text", "step_records"]
