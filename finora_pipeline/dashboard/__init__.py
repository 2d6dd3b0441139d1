"""The web pages: Settings → API Keys, Overview, Plan. They read the published copy and write only through
`accounts`; nothing here knows of Dagster."""

DEFAULT_PORT = 8000
