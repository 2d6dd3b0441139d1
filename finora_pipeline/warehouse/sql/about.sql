-- about: what the published tables are, and as of when.
--
-- Grain: one row, replaced by each publish; none before the first (warehouse/publish.py).

-- [create]
CREATE TABLE about (
    schema_version  VARCHAR NOT NULL,
    published_at    TIMESTAMPTZ NOT NULL,
    finora_version  VARCHAR NOT NULL,
    currency        VARCHAR NOT NULL,
    time_zone       VARCHAR NOT NULL
);

-- [define]
COMMENT ON TABLE about IS 'One row: the version of the published tables, and the moment of this snapshot.';
COMMENT ON COLUMN about.schema_version IS 'Semantic version of the published tables and views: a change of the first number is one that readers must follow';
COMMENT ON COLUMN about.published_at IS 'Time of publishing (UTC), the same as in manifest.json';
COMMENT ON COLUMN about.finora_version IS 'Version of Finora Pipeline that published the tables';
COMMENT ON COLUMN about.currency IS 'Currency of all amounts: USD';
COMMENT ON COLUMN about.time_zone IS 'Time zone of all days and moments: UTC';
