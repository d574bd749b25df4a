"""One file per file format; each sets READER, an instance of `base.Reader`. A file that is added here is a format more.

A reader is a generator of Documents: it holds one block or one row at a time. A file named by itself that cannot be
read raises ConfigError; inside a folder it is left out, which the report notes.
"""

from collections.abc import Mapping

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.settings.discovery import plugins

READERS: Mapping[str, Reader] = plugins("corpus/readers")
