PRAGMA application_id = 1668443491;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE batch (id INTEGER PRIMARY KEY, kind TEXT, body_hash BLOB, sent_at TEXT, watermark INTEGER,
                    certain INTEGER DEFAULT 0,
                    partly INTEGER DEFAULT 0, outcome TEXT);
INSERT INTO "batch" VALUES(1,'contacts',X'D8CE1CD45D7F72DA','2026-03-20T10:15:05.025000+00:00',0,0,0,'applied');
INSERT INTO "batch" VALUES(2,'deals',X'F50EC92A71B7F6C8','2026-03-20T10:15:05.025000+00:00',0,0,0,NULL);
CREATE TABLE item (kind TEXT, src, state TEXT, tgt, batch INTEGER, digest BLOB, wrote TEXT, attempts INTEGER DEFAULT 0,
                   above, name TEXT, error TEXT, PRIMARY KEY (kind, src)) WITHOUT ROWID;
INSERT INTO "item" VALUES('contacts',101,'done',4925,1,X'26B33C8384EBF040','48c0f90c01bd7bc8eb3b8635d6edc009',1,NULL,NULL,NULL);
INSERT INTO "item" VALUES('contacts',102,'done',4927,1,X'D4AF8E428D7F0219','7b3a3d73649990c4a0da8e2c04487ac7',1,NULL,NULL,NULL);
INSERT INTO "item" VALUES('contacts',103,'done',4930,1,X'5D80E9D207481DB1','28cb716f473ed2343529243f061e42af',1,NULL,NULL,NULL);
INSERT INTO "item" VALUES('contacts',104,'done',4933,1,X'2314B01E036FE6FC','28cb716f473ed2343529243f061e42af',1,NULL,NULL,NULL);
INSERT INTO "item" VALUES('deals',201,'intent',NULL,2,X'21CCD852B2A3304C',NULL,1,NULL,NULL,NULL);
INSERT INTO "item" VALUES('tasks',301,'pending',NULL,NULL,X'4D8006BF61AC6350',NULL,0,NULL,NULL,NULL);
CREATE TABLE kept (kind TEXT, src, what TEXT, value TEXT, PRIMARY KEY (kind, src, what)) WITHOUT ROWID;
CREATE TABLE map (kind TEXT, src, tgt, how TEXT, PRIMARY KEY (kind, src)) WITHOUT ROWID;
CREATE TABLE page (pass INTEGER PRIMARY KEY, cursor TEXT, rows INTEGER, ended INTEGER);
INSERT INTO "page" VALUES(0,'{"at": 1, "part": 4}',6,0);
CREATE TABLE row (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, src, tree TEXT);
INSERT INTO "row" VALUES(5,'deals',201,'{"$":"Deal","contacts":[{"$":"Link","main":true,"ref":{"$":"Ref","id":101,"kind":"contact"}}],"created_at":{"$":"datetime","at":"2023-11-14T22:13:20+00:00"},"created_by":{"$":"Ref","id":4803,"kind":"user"},"id":201,"name":"Made, and nobody heard of it","outcome":"open","owner":{"$":"Ref","id":4803,"kind":"user"},"pipeline":{"$":"Ref","id":4811,"kind":"pipeline"},"price":{"$":"Money","amount":{"$":"Decimal","is":"0"}},"stage":{"$":"Ref","id":4814,"kind":"stage"},"updated_at":{"$":"datetime","at":"2023-11-14T22:15:00+00:00"},"updated_by":{"$":"Ref","id":4803,"kind":"user"}}');
INSERT INTO "row" VALUES(6,'tasks',301,'{"$":"Task","created_at":{"$":"datetime","at":"2023-11-14T22:13:20+00:00"},"created_by":{"$":"Ref","id":4803,"kind":"user"},"due":{"$":"datetime","at":"2026-05-28T20:26:40+00:00"},"id":301,"owner":{"$":"Ref","id":4803,"kind":"user"},"target":{"$":"Ref","id":102,"kind":"contact"},"text":"Pending","type":{"$":"Ref","id":1,"kind":"task_type"},"updated_at":{"$":"datetime","at":"2023-11-14T22:15:00+00:00"},"updated_by":{"$":"Ref","id":4803,"kind":"user"}}');
CREATE TABLE run (id TEXT PRIMARY KEY, source TEXT, target TEXT, plan TEXT, plan_hash TEXT, caps_hash TEXT,
                  started_at TEXT, ended_at TEXT, state TEXT, verdict TEXT);
INSERT INTO "run" VALUES('ef45e381d11f4a6fbd7241dccd73f425','http://localhost','http://localhost','PLAN','PLAN_HASH','CAPS','2026-03-20T10:15:04.020000+00:00',NULL,'running',NULL);
CREATE UNIQUE INDEX one_target ON item (kind, tgt) WHERE tgt IS NOT NULL;
CREATE INDEX in_doubt ON item (batch) WHERE state = 'intent';
CREATE INDEX unfinished ON item (kind) WHERE state = 'made';
CREATE INDEX in_order ON row (kind, seq);
CREATE UNIQUE INDEX one_row ON row (kind, src);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('row',6);
COMMIT;
