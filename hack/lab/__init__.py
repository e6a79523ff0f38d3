"""A registry, small images and a forgeoned of one's own: what the demo, the end-to-end tests and the bench stand on."""
