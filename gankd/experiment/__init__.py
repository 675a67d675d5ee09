"""An experiment before it runs: its settings, its data and networks checked, its stages on disk."""
