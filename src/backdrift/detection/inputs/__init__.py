"""Input detectors, one method a file: how suspicious a single starting noise is."""
