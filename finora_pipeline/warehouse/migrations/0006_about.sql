-- One row once the warehouse is published; until then none, so that the next publish writes every Parquet file.
CREATE TABLE about (
    schema_version  VARCHAR NOT NULL,
    published_at    TIMESTAMPTZ NOT NULL,
    finora_version  VARCHAR NOT NULL,
    currency        VARCHAR NOT NULL,
    time_zone       VARCHAR NOT NULL
);
