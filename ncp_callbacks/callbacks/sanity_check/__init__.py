"""Compare the trained model with one whose parameters are shuffled."""
