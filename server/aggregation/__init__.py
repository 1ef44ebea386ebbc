"""How the sites' updates become one change of the model: the weighted mean, and rules that withstand bad sites."""

from server.aggregation.rules import AGGREGATORS, Aggregate, build_aggregate, fewest_sites
from server.aggregation.update import Values, Weight
from server.aggregation.weighted_mean import WeightedMean

__all__ = ["AGGREGATORS", "Aggregate", "Values", "Weight", "WeightedMean", "build_aggregate", "fewest_sites"]
