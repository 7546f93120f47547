"""Find features that act together."""
