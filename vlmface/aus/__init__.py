"""Action units of faces, estimated from landmarks: see `estimator.Estimator`."""
