"""L alone: a loss as a function of the flat vector theta, its gradient and curvature, and the measures S of it."""
