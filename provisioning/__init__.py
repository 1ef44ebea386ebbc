"""From a consortium's description to signed startup kits: make, verify, list, renew and lock out."""
