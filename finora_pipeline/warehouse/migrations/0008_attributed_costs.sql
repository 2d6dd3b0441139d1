-- The next refresh computes the days in portions.

CREATE TABLE daily_attributed_costs (
    user_id              VARCHAR NOT NULL,
    provider             VARCHAR NOT NULL,
    date                 DATE NOT NULL,
    project_id           VARCHAR,
    line_item            VARCHAR,
    member_id            VARCHAR,
    api_key_id           VARCHAR,
    cost_model           VARCHAR NOT NULL,
    direction            VARCHAR,
    tier                 VARCHAR,
    cost_service         VARCHAR,
    charge_category      VARCHAR,
    amount_usd           DECIMAL(38, 18) NOT NULL,
    charges_usd          DECIMAL(38, 18) NOT NULL,
    principal_type       VARCHAR NOT NULL,
    unattributed_reason  VARCHAR,
    method               VARCHAR NOT NULL,
    member_method        VARCHAR NOT NULL,
    api_key_method       VARCHAR NOT NULL
);

ALTER TABLE daily_member_costs ADD COLUMN charges_usd DECIMAL(38, 18);
ALTER TABLE daily_member_costs ADD COLUMN principal_type VARCHAR;
ALTER TABLE daily_member_costs ADD COLUMN unattributed_reason VARCHAR;

ALTER TABLE daily_key_costs ADD COLUMN charges_usd DECIMAL(38, 18);
ALTER TABLE daily_key_costs ADD COLUMN principal_type VARCHAR;
ALTER TABLE daily_key_costs ADD COLUMN unattributed_reason VARCHAR;

INSERT INTO pipeline.stale_days
SELECT DISTINCT user_id, provider, date FROM daily_costs
EXCEPT
FROM pipeline.stale_days;
