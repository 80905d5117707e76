"""The long exploration: the shipped engine on a real event loop, through as many interleavings as time allows."""
