"""Methods that train a backbone without labels."""
