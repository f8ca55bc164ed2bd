"""Models behind HTTP: predictions for rows as JSON, the Open Inference Protocol, metrics."""
