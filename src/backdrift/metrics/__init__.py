"""What is measured of generated images, one metric a file."""
