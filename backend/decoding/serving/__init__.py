"""Engine that answers concurrent requests to one model in shared batches."""
