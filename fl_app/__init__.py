"""fedspleen's learning code, job description and command line."""
