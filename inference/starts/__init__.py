"""Starts of training: clusterings of points, and several starts, which are trained together."""
