"""The store: all runs in one SQLite file. Imports neither torch nor Streamlit."""

from storage.connection import StoreBusy, StoreError
from storage.runs import RunStore

__all__ = ["RunStore", "StoreBusy", "StoreError"]
