"""Check that removing important inputs changes the target."""
