"""What runs at the server: the workflow, the aggregation, the checkpoints."""
