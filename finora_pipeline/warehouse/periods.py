"""Numbers of days that the warehouse's SQL, its Python and the dashboard share.

What OpenAI's behaviour dictates is in `openai_admin.provider`.
"""

# The price of a charge is compared with the last one of these days before (reconciliation.sql, rule 3).
PRICE_DAYS = 7
# Days of a sparkline, the last one included.
SPARKLINE_DAYS = 14
# For so many days back costs_as_of is exact at every moment; before, revisions are folded to one a UTC day.
EXACT_DAYS = 7
# By then OpenAI has booked and corrected a day; a restatement of a day this old is worth a look.
LATE_REVISION_DAYS = 7
# The endpoint whose known days are the days with known usage.
USAGE_KNOWN_BY = "completions"
