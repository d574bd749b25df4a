"""The start form: model, texts, method."""
