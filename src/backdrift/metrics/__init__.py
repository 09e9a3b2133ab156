"""What is measured of generated images, one metric a file, and how sure it is."""
