"""OpenAI's organization API: its endpoints, a client, key and amount formats, line items.

All knowledge of OpenAI belongs here. Dagster, storage, users and plans do not: the other packages import
this one, and it imports none of them.
"""
