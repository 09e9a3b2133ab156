"""The laboratory's machinery: recipes for models, zoos, calibration."""
