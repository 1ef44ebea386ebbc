"""The segmentation networks that a job can name."""
