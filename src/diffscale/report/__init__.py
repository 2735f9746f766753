"""Pictures and plots of what a search found."""
