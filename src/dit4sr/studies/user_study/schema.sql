-- The study's one file. Pictures are kept as bytes in it, so that no request ever names a file.
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pictures (id INTEGER PRIMARY KEY, png BLOB NOT NULL);
CREATE TABLE photos (
  id INTEGER PRIMARY KEY,
  benchmark TEXT NOT NULL,
  stem TEXT NOT NULL,
  lq INTEGER NOT NULL REFERENCES pictures,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  UNIQUE (benchmark, stem)
);
CREATE TABLE methods (id INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE);
-- competitor is NULL for an attention check, in which "ours" is the intact picture.
CREATE TABLE comparisons (
  id INTEGER PRIMARY KEY,
  photo INTEGER NOT NULL REFERENCES photos,
  competitor INTEGER REFERENCES methods,
  ours INTEGER NOT NULL REFERENCES pictures,
  other INTEGER NOT NULL REFERENCES pictures
);
-- session is the SHA-256 of the cookie, so that whoever reads this file cannot become a volunteer.
CREATE TABLE volunteers (
  id INTEGER PRIMARY KEY,
  code TEXT NOT NULL UNIQUE,
  session BLOB NOT NULL UNIQUE,
  joined REAL NOT NULL,
  seen REAL NOT NULL
);
CREATE TABLE steps (
  id INTEGER PRIMARY KEY,
  volunteer INTEGER NOT NULL REFERENCES volunteers ON DELETE CASCADE,
  position INTEGER NOT NULL,
  comparison INTEGER NOT NULL REFERENCES comparisons,
  ours_left INTEGER NOT NULL CHECK (ours_left IN (0, 1)),
  token TEXT NOT NULL UNIQUE,
  UNIQUE (volunteer, position)
);
-- The names under which a step's three pictures are fetched: random, and different in every step.
CREATE TABLE tokens (
  token TEXT PRIMARY KEY,
  step INTEGER NOT NULL REFERENCES steps ON DELETE CASCADE,
  slot TEXT NOT NULL CHECK (slot IN ('lq', 'left', 'right')),
  picture INTEGER NOT NULL REFERENCES pictures
) WITHOUT ROWID;
CREATE INDEX tokens_step ON tokens (step);
CREATE TABLE answers (
  step INTEGER PRIMARY KEY REFERENCES steps ON DELETE CASCADE,
  realism TEXT NOT NULL CHECK (realism IN ('left', 'right')),
  fidelity TEXT NOT NULL CHECK (fidelity IN ('left', 'right')),
  answered REAL NOT NULL
);
