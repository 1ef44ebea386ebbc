"""Every setting of a job, typed and validated. A job names no path of a site.

Reading a file, with all mistakes reported at their lines, is in ``config_file``.
"""

from fl_app.config.base import Settings
from fl_app.config.data import DataSettings
from fl_app.config.federation import FederationSettings
from fl_app.config.job import Job
from fl_app.config.network import NetworkSettings, network_sizes
from fl_app.config.plan import Plan, plan_unet
from fl_app.config.training import AugmentationSettings, EvaluationSettings, TrainingSettings

__all__ = [
    "AugmentationSettings",
    "DataSettings",
    "EvaluationSettings",
    "FederationSettings",
    "Job",
    "NetworkSettings",
    "Plan",
    "Settings",
    "TrainingSettings",
    "network_sizes",
    "plan_unet",
]
