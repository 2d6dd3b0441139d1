"""OpenAI as a provider: its name in rows, and when its figures begin and become final.

The only place of these numbers: fetch windows, the reconciliation view and the dashboard read them here.
"""

from datetime import date

# Value of the column `provider`.
PROVIDER = "openai"
# OpenAI has no costs from before it charged for its API (opened in June 2020).
FIRST_DAY = date(2020, 6, 1)
# A day is final when it is this old: OpenAI restates the two days before today, and one more covers what
# arrives late (API facts, delay and restatement).
FINAL_AFTER_DAYS = 3
# Up to this day of a month OpenAI may restate the month before, until its invoice is made (API facts, delay
# and restatement).
CLOSING_DAYS = 7
