"""`verify`, `verify --repair` and the scrub: both sides compared while both are in use."""
