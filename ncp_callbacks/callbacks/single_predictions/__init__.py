"""Show single sequences: attribution, state, reaction to time."""
