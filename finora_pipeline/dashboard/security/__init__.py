"""What decides about requests: guard, start link, logins, throttle, identity provider.

No page is rendered here and no figure is read; `server/` uses the guard and the start link for its own
servers, too.
"""
