"""Methods with a teacher."""
