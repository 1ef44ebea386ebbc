"""``python -m fl_app`` is `fedspleen`."""

from fl_app.cli.__main__ import main

main()
