"""Train and score a segmentation network on one site's cases. Nothing here knows of the federation."""
