"""What several processes of a run share: tensors, and the statistics of batch norms."""
