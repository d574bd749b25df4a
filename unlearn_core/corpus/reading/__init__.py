"""What all readers share: sources, unpacking, encodings, rows with fields, Hugging Face data sets."""
