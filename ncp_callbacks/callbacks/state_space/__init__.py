"""Show where the hidden state goes, along axes that are kept."""
