"""From files to batches: reading, inferring, encoding, splitting, preparing, loading."""
