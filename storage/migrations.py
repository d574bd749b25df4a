"""The tables of a store, as a list of steps that is only ever added to: a shipped migration is never edited."""

from __future__ import annotations

import json

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("lethe")

# AUTOINCREMENT where a page remembers an id: after a truncation it must not come back with another meaning.
# NOT NULL on values: SQLite keeps NaN as NULL, so a number that is not finite cannot slip in as a hole.
# parent_run has no foreign key: a child still names its parent after the parent was deleted.
TABLES = {
    "runs": """(
        id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL, method TEXT NOT NULL,
        status TEXT NOT NULL, status_reason TEXT, config TEXT NOT NULL, provenance TEXT NOT NULL, seed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL, last_step INTEGER NOT NULL DEFAULT 0,
        parent_run TEXT, parent_step INTEGER, lease_owner TEXT, lease_until REAL,
        notes TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '[]')""",
    "points": """(
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL, name TEXT NOT NULL,
        value REAL NOT NULL, PRIMARY KEY (run_id, step, name)) WITHOUT ROWID""",
    "prompts": """(
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
        slot INTEGER NOT NULL, version INTEGER NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL,
        from_step INTEGER NOT NULL, to_step INTEGER, UNIQUE (run_id, slot, version))""",
    "responses": """(
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL,
        prompt_id INTEGER NOT NULL REFERENCES prompts(id) ON DELETE CASCADE, sample INTEGER NOT NULL DEFAULT 0,
        text TEXT NOT NULL, tokens INTEGER, seconds REAL, target_probability REAL,
        PRIMARY KEY (run_id, step, prompt_id, sample))""",
    "events": """(
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT REFERENCES runs(id) ON DELETE CASCADE,
        step INTEGER, kind TEXT NOT NULL, payload TEXT NOT NULL, at TEXT NOT NULL)""",
    "commands": """(
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT REFERENCES runs(id) ON DELETE CASCADE,
        kind TEXT NOT NULL, payload TEXT NOT NULL, requested_at TEXT NOT NULL,
        acknowledged_at TEXT, done_at TEXT, error TEXT)""",
    "checkpoints": """(
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
        step INTEGER NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
        complete INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, UNIQUE (run_id, path))""",
    "examples": """(
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL, metric TEXT NOT NULL,
        example_id TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (run_id, step, metric, example_id)) WITHOUT ROWID""",
}

INDEXES = (
    "CREATE INDEX points_by_name ON points (run_id, name, step)",
    "CREATE INDEX responses_by_prompt ON responses (prompt_id, step)",
    "CREATE INDEX events_of_run ON events (run_id, id)",
    "CREATE INDEX events_by_step ON events (run_id, step)",
    "CREATE INDEX commands_of_run ON commands (run_id, id)",
    "CREATE INDEX commands_open ON commands (id) WHERE done_at IS NULL",
    "CREATE INDEX checkpoints_by_step ON checkpoints (run_id, step)",
    "CREATE INDEX runs_by_status ON runs (status)",
)


@MIGRATIONS(name="001_tables")
def tables(db: Database) -> None:
    """Every table of the first store, typed strictly where the SQLite at hand can (3.37 and later)."""
    for name, columns in TABLES.items():
        strict = "" if not db.supports_strict else ", STRICT" if columns.endswith("WITHOUT ROWID") else " STRICT"
        db.execute(f"CREATE TABLE {name} {columns}{strict}")
    for index in INDEXES:
        db.execute(index)


@MIGRATIONS(name="002_command_codes")
def command_codes(db: Database) -> None:
    """Why a command was refused, as a word for programs, beside the sentence in `error`."""
    db.execute("ALTER TABLE commands ADD COLUMN code TEXT")


# Which settings each guard rail had when a config still named those of all of them.
ROWS = (
    "rows", "groups", "batches", "batch_size", "refresh", "every", "drift", "history", "scope", "apply_to",
    "neighbours",
)  # fmt: skip
RAIL_SETTINGS = {
    "none": (),
    "retain_subspace": ROWS,
    "one_sided": ROWS,
    "null_space": ("batches", "batch_size", "neighbours", "energy"),
    "earlier_adapters": (),
}


@MIGRATIONS(name="003_own_guard_rail_settings")
def own_guard_rail_settings(db: Database) -> None:
    """The config of a run has the settings of its own guard rail, and not those of the others beside them."""
    for run_id, text in db.execute("SELECT id, config FROM runs").fetchall():
        config = json.loads(text)
        rail = config.get("guard_rail")
        if not rail or (own := RAIL_SETTINGS.get(rail.get("kind", "retain_subspace"))) is None:
            continue
        config["guard_rail"] = {name: rail[name] for name in ("kind", *own) if name in rail}
        if config["guard_rail"] != rail:
            db.execute("UPDATE runs SET config = ? WHERE id = ?", (json.dumps(config, ensure_ascii=False), run_id))


@MIGRATIONS(name="004_surprise")
def surprise(db: Database) -> None:
    """How surprising an answer is to the model as given; of older answers nobody knows."""
    db.execute("ALTER TABLE responses ADD COLUMN surprise REAL")


@MIGRATIONS(name="005_typical_share")
def typical_share(db: Database) -> None:
    """Of several answers drawn to a question, the share that the model as given would give."""
    db.execute("ALTER TABLE responses ADD COLUMN typical_share REAL")


@MIGRATIONS(name="006_adapter_sha256")
def adapter_sha256(db: Database) -> None:
    """The hash of what stays of a checkpoint when it shrinks; of those before, nobody kept it."""
    db.execute("ALTER TABLE checkpoints ADD COLUMN adapter_sha256 TEXT")


@MIGRATIONS(name="007_values_by_name")
def values_by_name(db: Database) -> None:
    """A series is read from its index alone: the values stand in it, not each at another place of the table."""
    db.execute("DROP INDEX points_by_name")
    db.execute("CREATE INDEX points_by_name ON points (run_id, name, step, value)")


@MIGRATIONS(name="008_acknowledged_by")
def acknowledged_by(db: Database) -> None:
    """Which driver does a command, so that one whose driver has died is not waited for."""
    db.execute("ALTER TABLE commands ADD COLUMN acknowledged_by TEXT")


@MIGRATIONS(name="009_command_steps")
def command_steps(db: Database) -> None:
    """The step at which a command took effect."""
    db.execute("ALTER TABLE commands ADD COLUMN step INTEGER")


def version_of(db: Database) -> str:
    """The number of the last migration that this file has seen: "001"; "000" when it has seen none."""
    applied = MIGRATIONS.applied(db)
    return applied[-1].name.split("_")[0] if applied else "000"


def unknown_to_us(db: Database) -> list[str]:
    """Names of the migrations in this file that this version of the program does not have."""
    with Database(memory=True) as empty:
        known = {migration.name for migration in MIGRATIONS.pending(empty)}
    return [migration.name for migration in MIGRATIONS.applied(db) if migration.name not in known]
