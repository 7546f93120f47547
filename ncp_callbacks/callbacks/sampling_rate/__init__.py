"""Drop and merge time steps, and measure what changes."""
