"""The search space of networks: its architectures as data, as modules and in bytes, and the best one in a budget."""
