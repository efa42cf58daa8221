"""Version 2 of the rendered faces: as photographs are taken, and people as they differ."""
