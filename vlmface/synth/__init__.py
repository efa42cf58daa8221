"""synth: faces rendered in 3-D whose action units are known exactly."""
