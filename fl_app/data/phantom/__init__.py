"""A phantom cohort: abdominal CT of patients that never lived, at sites that differ as hospitals do."""

from fl_app.data.phantom.case import make_case
from fl_app.data.phantom.cohort import make_cohort
from fl_app.data.phantom.sites import SITE_CHARACTERS, SiteCharacter, character_of

__all__ = ["SITE_CHARACTERS", "SiteCharacter", "character_of", "make_case", "make_cohort"]
