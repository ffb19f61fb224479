"""What ``accelctl mtree`` shows of a machine's memory: trees, flat views, overlaps, and a picture of them."""
