"""secateur."""
