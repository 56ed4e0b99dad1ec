"""PP-OCRv4's recogniser, text detector and direction classifier, cut and measured on rendered text with known labels."""
