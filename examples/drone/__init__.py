"""A detector of small drones, end to end: data, network, training, pruning, and a live clip."""
