"""Every error that a user can cause.

UserError                 printed as one sentence, never as a traceback
|-- ConfigError           a job file or a setting is wrong               exit code 2
|   `-- BudgetError       no network fits a memory budget                exit code 2
|-- UsageError            a command was called with wrong arguments      exit code 2
|-- DataError             a site's images or labels cannot be used       exit code 1
|-- PolicyError           a site's own limits forbid a job             exit code 1
|-- TrainingError         training cannot go on                          exit code 1
|-- ProcessError          a process that trains along has ended            exit code 1
|-- FederationError       a federation could not start or not finish     exit code 1
|-- ProvisioningError     startup kits could not be made                 exit code 1
`-- KitError              a startup kit is not to be trusted or used     exit code 1
"""


class UserError(Exception):
    """One clear sentence (or one a line): what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(UserError):
    """A job file, or a setting in it, is wrong."""

    exit_code = 2


class UsageError(UserError):
    """A command was called with arguments that do not fit."""

    exit_code = 2


class DataError(UserError):
    """A site's images or labels cannot be used as they are."""


class PolicyError(UserError):
    """A site's own limits forbid a job."""


class TrainingError(UserError):
    """Training cannot go on, such as when the loss is no longer a number."""


class ProcessError(UserError):
    """A process of a training that several processes share has ended, or did not get ready."""


class FederationError(UserError):
    """A federation could not start, or could not finish."""


class ProvisioningError(UserError):
    """A consortium's startup kits could not be made."""


class KitError(UserError):
    """A startup kit is damaged, forged, expired, or none at all."""


class BudgetError(ConfigError):
    """No network fits a memory budget.

    Attributes:
        least_bytes: the least budget that one fits in.
    """

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes
