"""A trained model on tomorrow's scan: any size of volume, in its own geometry, in bounded memory."""
