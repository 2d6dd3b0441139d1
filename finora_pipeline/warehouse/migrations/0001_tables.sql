-- The tables of schema number 1, for good: what a warehouse without a number is compared with, and what the
-- migrations after it start from.

CREATE SCHEMA pipeline;

CREATE TABLE pipeline.loaded_files (
    raw_file     VARCHAR NOT NULL PRIMARY KEY,
    run_id       VARCHAR NOT NULL,
    kind         VARCHAR NOT NULL,
    fetched_on   DATE NOT NULL,
    loaded_at    TIMESTAMPTZ NOT NULL,
    pages        BIGINT NOT NULL,
    users        BIGINT NOT NULL
);

CREATE TABLE pipeline.loaded_days (
    user_id           VARCHAR NOT NULL,
    provider          VARCHAR NOT NULL,
    endpoint          VARCHAR NOT NULL,
    date              DATE NOT NULL,
    first_fetched_at  TIMESTAMPTZ NOT NULL,
    fetched_at        TIMESTAMPTZ NOT NULL,
    raw_file          VARCHAR NOT NULL
);

CREATE TABLE pipeline.loaded_sets (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    endpoint    VARCHAR NOT NULL,
    fetched_at  TIMESTAMPTZ NOT NULL,
    sha256      VARCHAR NOT NULL
);

CREATE TABLE pipeline.stale_days (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL, date DATE NOT NULL);

CREATE TABLE pipeline.stale_users (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL);

CREATE TABLE pipeline.unpublished_months (table_name VARCHAR NOT NULL, month DATE NOT NULL);

CREATE TABLE pipeline.billed_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    reading     VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    line_item   VARCHAR,
    member_id   VARCHAR,
    api_key_id  VARCHAR,
    amount_usd  DECIMAL(38, 18),
    fetched_at  TIMESTAMPTZ NOT NULL,
    raw_file    VARCHAR NOT NULL
);

CREATE TABLE daily_costs (
    user_id          VARCHAR NOT NULL,
    provider         VARCHAR NOT NULL,
    date             DATE NOT NULL,
    project_id       VARCHAR,
    project_name     VARCHAR,
    line_item        VARCHAR,
    amount_usd       DECIMAL(38, 18),
    quantity         DECIMAL(38, 18),
    quantity_unit    VARCHAR,
    model            VARCHAR,
    direction        VARCHAR,
    modality         VARCHAR,
    tier             VARCHAR,
    is_long_context  BOOLEAN NOT NULL,
    is_parsed        BOOLEAN NOT NULL,
    organization_id  VARCHAR,
    fetched_at       TIMESTAMPTZ NOT NULL,
    raw_file         VARCHAR NOT NULL,
    is_sample        BOOLEAN NOT NULL
);

CREATE TABLE daily_usage (
    user_id                       VARCHAR NOT NULL,
    provider                      VARCHAR NOT NULL,
    date                          DATE NOT NULL,
    service                       VARCHAR NOT NULL,
    project_id                    VARCHAR,
    member_id                     VARCHAR,
    api_key_id                    VARCHAR,
    model                         VARCHAR,
    batch                         BOOLEAN,
    service_tier                  VARCHAR,
    requests                      BIGINT,
    calls                         BIGINT,
    input_tokens                  BIGINT,
    input_cached_tokens           BIGINT,
    input_uncached_tokens         BIGINT,
    input_cache_write_tokens      BIGINT,
    input_cache_write_30m_tokens  BIGINT,
    input_cache_write_12h_tokens  BIGINT,
    input_text_tokens             BIGINT,
    input_cached_text_tokens      BIGINT,
    output_tokens                 BIGINT,
    output_text_tokens            BIGINT,
    input_audio_tokens            BIGINT,
    input_cached_audio_tokens     BIGINT,
    output_audio_tokens           BIGINT,
    input_image_tokens            BIGINT,
    input_cached_image_tokens     BIGINT,
    output_image_tokens           BIGINT,
    images                        BIGINT,
    seconds                       BIGINT,
    characters                    BIGINT,
    usage_bytes                   BIGINT,
    sessions                      BIGINT,
    fetched_at                    TIMESTAMPTZ NOT NULL,
    raw_file                      VARCHAR NOT NULL,
    is_sample                     BOOLEAN NOT NULL
);

CREATE TABLE daily_model_costs (
    user_id             VARCHAR NOT NULL,
    provider            VARCHAR NOT NULL,
    date                DATE NOT NULL,
    model               VARCHAR NOT NULL,
    amount_usd          DECIMAL(38, 18) NOT NULL,
    token_priced_usd    DECIMAL(38, 18) NOT NULL,
    requests            BIGINT,
    input_tokens        BIGINT,
    output_tokens       BIGINT,
    cost_per_1k_tokens  DECIMAL(38, 18),
    is_sample           BOOLEAN NOT NULL
);

CREATE TABLE daily_member_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    member_id   VARCHAR,
    model       VARCHAR NOT NULL,
    amount_usd  DECIMAL(38, 18) NOT NULL,
    method      VARCHAR NOT NULL,
    is_sample   BOOLEAN NOT NULL
);

CREATE TABLE daily_key_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    api_key_id  VARCHAR,
    model       VARCHAR NOT NULL,
    amount_usd  DECIMAL(38, 18) NOT NULL,
    method      VARCHAR NOT NULL,
    is_sample   BOOLEAN NOT NULL
);

CREATE TABLE cost_revisions (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    date            DATE NOT NULL,
    project_id      VARCHAR,
    line_item       VARCHAR,
    observed_at     TIMESTAMPTZ NOT NULL,
    old_amount_usd  DECIMAL(38, 18),
    new_amount_usd  DECIMAL(38, 18),
    old_quantity    DECIMAL(38, 18),
    new_quantity    DECIMAL(38, 18),
    was_there       BOOLEAN NOT NULL,
    is_there        BOOLEAN NOT NULL
);

CREATE TABLE usage_revisions (
    user_id            VARCHAR NOT NULL,
    provider           VARCHAR NOT NULL,
    date               DATE NOT NULL,
    service            VARCHAR NOT NULL,
    project_id         VARCHAR,
    member_id          VARCHAR,
    api_key_id         VARCHAR,
    model              VARCHAR,
    batch              BOOLEAN,
    service_tier       VARCHAR,
    observed_at        TIMESTAMPTZ NOT NULL,
    old_requests       BIGINT,
    new_requests       BIGINT,
    old_input_tokens   BIGINT,
    new_input_tokens   BIGINT,
    old_output_tokens  BIGINT,
    new_output_tokens  BIGINT,
    old_other          BIGINT,
    new_other          BIGINT
);

CREATE TABLE user_metrics (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    period          VARCHAR NOT NULL,
    period_start    DATE NOT NULL,
    period_end      DATE NOT NULL,
    unit            VARCHAR NOT NULL,
    value           DECIMAL(38, 18),
    previous_value  DECIMAL(38, 18),
    change          DECIMAL(38, 18),
    covered_share   DECIMAL(38, 18),
    detail          VARCHAR,
    sparkline       DECIMAL(38, 18)[],
    is_sample       BOOLEAN NOT NULL
);

CREATE TABLE projects (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    project_id      VARCHAR NOT NULL,
    name            VARCHAR,
    status          VARCHAR,
    created_at      TIMESTAMPTZ,
    archived_at     TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE members (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    member_id       VARCHAR NOT NULL,
    email           VARCHAR,
    name            VARCHAR,
    role            VARCHAR,
    added_at        TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE api_keys (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    api_key_id      VARCHAR NOT NULL,
    name            VARCHAR,
    redacted_value  VARCHAR,
    project_id      VARCHAR,
    owner_type      VARCHAR,
    owner_id        VARCHAR,
    owner_name      VARCHAR,
    owner_email     VARCHAR,
    created_at      TIMESTAMPTZ,
    last_used_at    TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE connections (
    user_id          VARCHAR NOT NULL,
    provider         VARCHAR NOT NULL,
    plan             VARCHAR NOT NULL,
    status           VARCHAR NOT NULL,
    status_reason    VARCHAR,
    status_since     TIMESTAMPTZ NOT NULL,
    organization_id  VARCHAR,
    connected_at     TIMESTAMPTZ NOT NULL,
    last_refresh_at  TIMESTAMPTZ,
    next_refresh_at  TIMESTAMPTZ
);

CREATE TABLE pipeline.reconciled_days (
    user_id               VARCHAR NOT NULL,
    provider              VARCHAR NOT NULL,
    date                  DATE NOT NULL,
    api_total_usd         DECIMAL(38, 18),
    facts_usd             DECIMAL(38, 18) NOT NULL,
    billed_tokens         DECIMAL(38, 18),
    used_tokens           BIGINT,
    price_residual_usd    DECIMAL(38, 18),
    lines_without_amount  BIGINT NOT NULL
);
