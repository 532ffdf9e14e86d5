"""What one training run is made of."""
