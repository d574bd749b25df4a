-- A store as version 0.4.0 (migration 001_tables) wrote it, dumped by sqlite3.
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'lethe','001_tables','2026-11-25 21:48:42.506362+00:00');
CREATE TABLE checkpoints (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
        step INTEGER NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
        complete INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, UNIQUE (run_id, path)) STRICT;
INSERT INTO "checkpoints" VALUES(1,'0badcafe',0,'checkpoints/0badcafe/step-000000',3,'0000000000000000000000000000000000000000000000000000000000000000',1,0);
INSERT INTO "checkpoints" VALUES(2,'0badcafe',1,'checkpoints/0badcafe/step-000001',3,'0000000000000000000000000000000000000000000000000000000000000000',0,0);
INSERT INTO "checkpoints" VALUES(3,'0badcafe',2,'checkpoints/0badcafe/step-000002',3,'0000000000000000000000000000000000000000000000000000000000000000',1,0);
CREATE TABLE commands (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT REFERENCES runs(id) ON DELETE CASCADE,
        kind TEXT NOT NULL, payload TEXT NOT NULL, requested_at TEXT NOT NULL,
        acknowledged_at TEXT, done_at TEXT, error TEXT) STRICT;
INSERT INTO "commands" VALUES(1,'0badcafe','pause','{}','2026-11-25T21:48:42.517885+00:00','2026-11-25T21:48:42.518023+00:00','2026-11-25T21:48:42.518076+00:00',NULL);
INSERT INTO "commands" VALUES(2,'0badcafe','dance','{}','2026-11-25T21:48:42.518193+00:00','2026-11-25T21:48:42.518269+00:00','2026-11-25T21:48:42.518300+00:00','“dance” is not something a run can do.');
INSERT INTO "commands" VALUES(3,'0badcafe','resume','{}','2026-11-25T21:48:42.518378+00:00',NULL,NULL,NULL);
CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT REFERENCES runs(id) ON DELETE CASCADE,
        step INTEGER, kind TEXT NOT NULL, payload TEXT NOT NULL, at TEXT NOT NULL) STRICT;
INSERT INTO "events" VALUES(1,'0badcafe',0,'created','{"parent_run": null, "parent_step": null}','2026-11-25T21:48:42.511615+00:00');
INSERT INTO "events" VALUES(2,'0badcafe',2,'paused','{"reason": "Paused by hand."}','2026-11-25T21:48:42.517429+00:00');
INSERT INTO "events" VALUES(3,'0badcafe',2,'prompt_edited','{"slot": 0, "old": "Explain the word.", "new": "What was the word?"}','2026-11-25T21:48:42.517783+00:00');
CREATE TABLE examples (
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL, metric TEXT NOT NULL,
        example_id TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (run_id, step, metric, example_id)) WITHOUT ROWID, STRICT;
INSERT INTO "examples" VALUES('0badcafe',0,'nll','o1',0.25);
INSERT INTO "examples" VALUES('0badcafe',1,'nll','o1',0.25);
INSERT INTO "examples" VALUES('0badcafe',2,'nll','o1',0.25);
CREATE TABLE points (
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL, name TEXT NOT NULL,
        value REAL NOT NULL, PRIMARY KEY (run_id, step, name)) WITHOUT ROWID, STRICT;
INSERT INTO "points" VALUES('0badcafe',0,'forget_loss',0.0);
INSERT INTO "points" VALUES('0badcafe',0,'retain_loss',1.0);
INSERT INTO "points" VALUES('0badcafe',1,'forget_loss',0.5);
INSERT INTO "points" VALUES('0badcafe',1,'retain_loss',1.0);
INSERT INTO "points" VALUES('0badcafe',2,'forget_loss',1.0);
INSERT INTO "points" VALUES('0badcafe',2,'retain_loss',1.0);
CREATE TABLE prompts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
        slot INTEGER NOT NULL, version INTEGER NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL,
        from_step INTEGER NOT NULL, to_step INTEGER, UNIQUE (run_id, slot, version)) STRICT;
INSERT INTO "prompts" VALUES(1,'0badcafe',0,1,'forget','Explain the word.',0,2);
INSERT INTO "prompts" VALUES(2,'0badcafe',1,1,'retain','What is the capital of France?',0,NULL);
INSERT INTO "prompts" VALUES(3,'0badcafe',0,2,'forget','What was the word?',2,NULL);
CREATE TABLE responses (
        run_id TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL,
        prompt_id INTEGER NOT NULL REFERENCES prompts(id) ON DELETE CASCADE, sample INTEGER NOT NULL DEFAULT 0,
        text TEXT NOT NULL, tokens INTEGER, seconds REAL, target_probability REAL,
        PRIMARY KEY (run_id, step, prompt_id, sample)) STRICT;
INSERT INTO "responses" VALUES('0badcafe',0,1,0,'answer 0',2,0.1,0.5);
INSERT INTO "responses" VALUES('0badcafe',0,2,0,'answer 0',2,0.1,0.5);
INSERT INTO "responses" VALUES('0badcafe',1,1,0,'answer 1',2,0.1,0.5);
INSERT INTO "responses" VALUES('0badcafe',1,2,0,'answer 1',2,0.1,0.5);
INSERT INTO "responses" VALUES('0badcafe',2,1,0,'answer 2',2,0.1,0.5);
INSERT INTO "responses" VALUES('0badcafe',2,2,0,'answer 2',2,0.1,0.5);
CREATE TABLE runs (
        id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL, method TEXT NOT NULL,
        status TEXT NOT NULL, status_reason TEXT, config TEXT NOT NULL, provenance TEXT NOT NULL, seed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL, last_step INTEGER NOT NULL DEFAULT 0,
        parent_run TEXT, parent_step INTEGER, lease_owner TEXT, lease_until REAL,
        notes TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '[]') STRICT;
INSERT INTO "runs" VALUES('0badcafe','first light','word','grad_ascent','paused','Paused by hand.','{"preset": "post", "schedule": {"steps": 3}}','{"device": "cpu"}',7,'2026-11-25T21:48:42.511300+00:00','2026-11-25T21:48:42.517150+00:00',2,NULL,NULL,NULL,NULL,'it''s *odd*','[]');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX points_by_name ON points (run_id, name, step);
CREATE INDEX responses_by_prompt ON responses (prompt_id, step);
CREATE INDEX events_of_run ON events (run_id, id);
CREATE INDEX events_by_step ON events (run_id, step);
CREATE INDEX commands_of_run ON commands (run_id, id);
CREATE INDEX commands_open ON commands (id) WHERE done_at IS NULL;
CREATE INDEX checkpoints_by_step ON checkpoints (run_id, step);
CREATE INDEX runs_by_status ON runs (status);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('prompts',3);
INSERT INTO "sqlite_sequence" VALUES('events',3);
INSERT INTO "sqlite_sequence" VALUES('checkpoints',3);
INSERT INTO "sqlite_sequence" VALUES('commands',3);
COMMIT;
