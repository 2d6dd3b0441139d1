-- What a charge is for, the model that usage and costs share, and figures that know which days are known.
ALTER TABLE daily_costs ADD COLUMN organization_name VARCHAR;
ALTER TABLE daily_costs ADD COLUMN cost_service VARCHAR;
ALTER TABLE daily_costs ADD COLUMN charge_category VARCHAR;
ALTER TABLE daily_costs ADD COLUMN cost_model VARCHAR;
ALTER TABLE daily_usage ADD COLUMN cost_model VARCHAR;
ALTER TABLE daily_model_costs ADD COLUMN charges_usd DECIMAL(38, 18);
ALTER TABLE daily_model_costs ADD COLUMN cost_service VARCHAR;
ALTER TABLE daily_model_costs ADD COLUMN usage_models VARCHAR[];
ALTER TABLE user_metrics ADD COLUMN through_date DATE;
ALTER TABLE user_metrics ADD COLUMN known_days INTEGER;
ALTER TABLE user_metrics ADD COLUMN known_until TIMESTAMPTZ;
ALTER TABLE user_metrics ADD COLUMN change_unit VARCHAR;

CREATE TABLE daily_user_metrics (
    user_id       VARCHAR NOT NULL,
    provider      VARCHAR NOT NULL,
    as_of_date    DATE NOT NULL,
    metric        VARCHAR NOT NULL,
    period        VARCHAR NOT NULL,
    through_date  DATE NOT NULL,
    known_days    INTEGER NOT NULL,
    unit          VARCHAR NOT NULL,
    value         DECIMAL(38, 18)
);

-- Their periods ended with today.
DELETE FROM user_metrics;
