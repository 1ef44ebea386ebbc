"""From a consortium's description to startup kits; so far only the components that a job may name."""
