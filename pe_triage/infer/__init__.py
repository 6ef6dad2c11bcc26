"""From a volume to a prediction, and from a prediction to where in the slices it comes from."""
