-- What a charge is for, the model that usage and costs share, and figures that know which days are known.
ALTER TABLE daily_costs ADD COLUMN organization_name VARCHAR;
ALTER TABLE daily_costs ADD COLUMN cost_service VARCHAR;
ALTER TABLE daily_costs ADD COLUMN charge_category VARCHAR;
ALTER TABLE daily_costs ADD COLUMN cost_model VARCHAR;
ALTER TABLE daily_usage ADD COLUMN cost_model VARCHAR;
ALTER TABLE daily_model_costs ADD COLUMN charges_usd DECIMAL(38, 18);
ALTER TABLE daily_model_costs ADD COLUMN cost_service VARCHAR;
ALTER TABLE daily_model_costs ADD COLUMN usage_models VARCHAR[];
