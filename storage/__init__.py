"""The memory: every run, in one SQLite file. Knows no torch and no Streamlit."""

from storage.connection import StoreError
from storage.runs import RunStore

__all__ = ["RunStore", "StoreError"]
