"""Find, check, split, preprocess and sample a site's images and labels."""
