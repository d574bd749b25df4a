"""How much uploads may hold in memory, all sessions together: Streamlit keeps each whole until its session ends."""

from __future__ import annotations

from collections.abc import Callable

from streamlit import runtime
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager

from pages.serving.hosts import Application, Receive, Scope, Send

PATH = "/_stcore/upload_file/"
AT_ONCE = 3  # of the largest uploads
FRAME = 1 << 20  # bytes of a request around the file
TOO_LARGE, LENGTH_REQUIRED = 413, 411


def held() -> int:
    """Bytes of the uploads that the server holds."""
    manager = runtime.get_instance().uploaded_file_mgr if runtime.exists() else None
    if not isinstance(manager, MemoryUploadedFileManager):
        return 0
    return sum(len(file.data) for files in list(manager.file_storage.values()) for file in list(files.values()))


class UploadLimit:
    """An ASGI middleware that refuses an upload by its length, before a byte of it is read.

    `largest`: bytes of one upload.
    """

    def __init__(self, app: Application, largest: int, held: Callable[[], int] = held) -> None:
        self.app, self.largest, self.held = app, largest, held
        self.coming = 0  # bytes that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("PUT", "POST") or PATH not in scope["path"]:
            await self.app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            await _refuse(LENGTH_REQUIRED, b"An upload has to say how long it is.\n", send)
            return
        length = int(lengths[0][:18])
        if length > self.largest + FRAME or self.held() + self.coming + length > AT_ONCE * (self.largest + FRAME):
            await _refuse(TOO_LARGE, b"The upload is too large, or too many are held already.\n", send)
            return
        self.coming += length
        try:
            await self.app(scope, receive, send)
        finally:
            self.coming -= length


async def _refuse(status: int, text: bytes, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
