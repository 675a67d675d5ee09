"""Methods of several students that learn together."""
