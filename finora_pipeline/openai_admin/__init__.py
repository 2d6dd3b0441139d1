"""OpenAI's organization API: endpoints, client, keys and line items. Knows nothing of Dagster or storage."""
