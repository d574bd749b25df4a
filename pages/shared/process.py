"""Objects that live as long as the process: scripts run again and again, this file is imported once."""

import threading
from typing import Any

lock = threading.Lock()
objects: dict[str, Any] = {}
