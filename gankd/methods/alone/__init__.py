"""Methods of one student alone."""
