"""What lives as long as the process: scripts run again and again, this file is imported once, no cache clears it."""

import threading
from typing import Any

lock = threading.Lock()
things: dict[str, Any] = {}
