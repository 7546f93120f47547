"""Show a wired cell as a graph of its neurons."""
