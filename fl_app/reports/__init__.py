"""What people see of a run: lines while it goes on, tables when it is done, curves for TensorBoard."""
