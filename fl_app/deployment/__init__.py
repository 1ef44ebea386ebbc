"""Servers and sites for real: start them, check a site before it starts, run a job and bring its result home."""
